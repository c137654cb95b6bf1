import torch

from retinaserve.training.trainer.optimizer import Muon


def drawn(*shape: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))))


def test_steps_are_those_of_torchs_muon_and_of_its_adamw() -> None:
    """torch's takes matrices alone, so that a convolution is one of its rows an output."""
    ours = wide, tall, other = drawn(6, 4, 3, 3), drawn(40, 8, 1, 1), drawn(7)
    wide.data = wide.data.contiguous(memory_format=torch.channels_last)
    theirs = [torch.nn.Parameter(each.detach().clone().flatten(1)) for each in (wide, tall)]
    theirs.append(torch.nn.Parameter(other.detach().clone()))
    groups = [{"params": [other]}, {"params": [wide, tall], "orthogonal": True}]
    optimizer = Muon(groups, lr=0.01, weight_decay=0.1)
    muon = torch.optim.Muon(theirs[:2], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(theirs[2:], lr=0.01, weight_decay=0.1)
    for step in range(3):
        for own, reference in zip(ours, theirs, strict=True):
            gradient = torch.randn(own.shape, generator=torch.Generator().manual_seed(step))
            own.grad, reference.grad = gradient, gradient.clone().view_as(reference)
        for each in (optimizer, muon, adamw):
            each.step()
    for own, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own.detach().reshape(reference.shape), reference.detach(), rtol=0, atol=1e-4)


def test_a_run_goes_on_with_what_it_remembers() -> None:
    def run(weight: torch.nn.Parameter, optimizer: Muon, steps: range) -> None:
        for step in steps:
            weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
            optimizer.step()

    def of(weight: torch.nn.Parameter) -> Muon:
        return Muon([{"params": [weight], "orthogonal": True}], lr=0.1)

    whole, half = drawn(4, 4, 3, 3), drawn(4, 4, 3, 3)
    run(whole, of(whole), range(4))
    before = of(half)
    run(half, before, range(2))
    after = of(half)
    after.load_state_dict(before.state_dict())
    run(half, after, range(2, 4))
    assert torch.equal(whole, half)


def test_a_step_whose_gradient_overflowed_is_left_out() -> None:
    scaler = torch.amp.GradScaler("cpu")
    ours = drawn(6, 4, 3, 3), drawn(7)
    before = [each.detach().clone() for each in ours]
    optimizer = Muon([{"params": [ours[0]], "orthogonal": True}, {"params": [ours[1]]}], lr=0.1, fused=True)
    for value in (torch.inf, 1.0):
        for each in ours:
            each.grad = torch.full_like(each, value)
        scaler.scale(torch.zeros(()))  # type: ignore[no-untyped-call]
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        moved = [not torch.equal(a, b) for a, b in zip(ours, before, strict=True)]
        assert moved == [value == 1.0] * 2
    assert all(each.isfinite().all() for each in ours)
