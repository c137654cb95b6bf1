"""Holds the configs of a repository together: with the graph, the DALI pipeline, the plan and each other.

    check_configs(configs, spec, manifest=manifest)    # raises UserError with the first thing that is wrong

What Triton would say only at load, or never: swapped outputs of the dali backend are served under each other's
names, and requests of different length silently run one by one without `allow_ragged_batch`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from nvidia.dali import types as dali

from retinaserve.build_tools.engine.manifest import Manifest
from retinaserve.build_tools.preprocess import pipeline
from retinaserve.build_tools.repository.config_schema import tensor_of
from retinaserve.training import spec as contract
from retinaserve.training.errors import UserError
from retinaserve.training.spec import DetectorSpec, Tensor

ENCODED = Tensor("uint8", (-1,))
DALI_TYPES = {dali.UINT8: "uint8", dali.FLOAT: "float32", dali.INT32: "int32"}


def check_configs(configs: Mapping[str, Any], spec: DetectorSpec, *, manifest: Manifest | None = None) -> None:
    """Raise UserError unless the configs agree with the graph, the pipeline, the plan and the ensemble's map."""
    for problem in problems(configs, spec, manifest):
        raise UserError(problem)


def problems(configs: Mapping[str, Any], spec: DetectorSpec, manifest: Manifest | None) -> Iterator[str]:
    """Give what is wrong with the configs of a repository, a sentence each that begins with the file."""
    yield from _tensors(configs, spec)
    yield from _batching(configs)
    yield from _ensemble(configs)
    for name, config in configs.items():
        if config.backend == "dali":
            yield from (f"{name}/config.pbtxt: {problem}" for problem in _pipeline(config))
        if config.backend == "tensorrt":
            yield from (f"{name}/config.pbtxt: {problem}" for problem in _plan(config, spec, manifest))


def _tensors(configs: Mapping[str, Any], spec: DetectorSpec) -> Iterator[str]:
    encoded = {contract.IMAGE_BYTES: ENCODED}
    letterbox = {contract.LETTERBOX: spec.inputs[contract.LETTERBOX]}
    expected = {
        contract.ADMISSION: (encoded, encoded),
        contract.PREPROCESS: (encoded, spec.inputs),
        contract.RETINANET: (spec.inputs, spec.outputs),
        contract.DETECTOR: (encoded, {**spec.outputs, **letterbox}),
    }
    for name, config in configs.items():
        for kind, wanted in zip(("input", "output"), expected[name], strict=True):
            found = {tensor.name: tensor_of(tensor) for tensor in getattr(config, kind)}
            if found != wanted:
                yield f"{name}/config.pbtxt: its {kind}s are {found}, the graph's are {wanted}"


def _batching(configs: Mapping[str, Any]) -> Iterator[str]:
    sizes = {name: config.max_batch_size for name, config in configs.items()}
    if len(set(sizes.values())) > 1:
        yield f"config.pbtxt: max_batch_size differs: {', '.join(f'{name} {n}' for name, n in sizes.items())}"
    for name, config in configs.items():
        if not config.HasField("ensemble_scheduling") and not config.HasField("dynamic_batching"):
            yield f"{name}/config.pbtxt: no dynamic_batching, so that every request would run alone"
        for tensor in config.input:
            if tensor_of(tensor) == ENCODED and not tensor.allow_ragged_batch:
                yield (
                    f"{name}/config.pbtxt: input {tensor.name} needs allow_ragged_batch, or pictures of different "
                    "length never share an execution"
                )


def _ensemble(configs: Mapping[str, Any]) -> Iterator[str]:
    """Follow the ensemble's map: each tensor is made once, before it is used, as what its user takes."""
    detector = configs[contract.DETECTOR]
    where = f"{contract.DETECTOR}/config.pbtxt"
    known = {tensor.name: tensor_of(tensor) for tensor in detector.input}
    for step in detector.ensemble_scheduling.step:
        model = configs.get(step.model_name)
        if model is None:
            yield f"{where}: step {step.model_name!r} is not in the repository"
            return
        for kind, mapped in (("input", step.input_map), ("output", step.output_map)):
            names = {tensor.name for tensor in getattr(model, kind)}
            if set(mapped) != names:
                yield (
                    f"{where}: step {step.model_name} maps {kind}s {sorted(mapped)}, the model has {sorted(names)}"
                )
                return
        for tensor in model.input:
            source = step.input_map[tensor.name]
            if source not in known:
                yield f"{where}: step {step.model_name} takes {source!r}, which no step before it gives"
            elif known[source] != tensor_of(tensor):
                yield (
                    f"{where}: step {step.model_name} takes {source!r} as {tensor.name}, {tensor_of(tensor)}, "
                    f"but it is {known[source]}"
                )
        for tensor in model.output:
            target = step.output_map[tensor.name]
            if target in known:
                yield f"{where}: step {step.model_name} gives {target!r}, which there is already"
            known[target] = tensor_of(tensor)
    for tensor in detector.output:
        if known.get(tensor.name) != tensor_of(tensor):
            yield f"{where}: no step gives its output {tensor.name} as {tensor_of(tensor)}"


def _pipeline(config: Any) -> Iterator[str]:
    """Compare with what the dali backend goes by: the source's name, and the outputs' places, types and ranks."""
    if [tensor.name for tensor in config.input] != [pipeline.INPUT]:
        yield f"its input must have the name of the pipeline's source, {pipeline.INPUT!r}"
    names = [tensor.name for tensor in config.output]
    if names != list(pipeline.OUTPUTS):
        yield f"its outputs are {names}; the pipeline returns {list(pipeline.OUTPUTS)}, and only the place counts"
        return
    for tensor, kind, rank in zip(config.output, pipeline.OUTPUT_TYPES, pipeline.OUTPUT_RANKS, strict=True):
        found, wanted = tensor_of(tensor), (DALI_TYPES[kind], rank)
        if (found.dtype, len(found.shape)) != wanted:
            yield f"its output {tensor.name} is {found}; the pipeline returns {wanted[0]} of rank {wanted[1]}"


def _plan(config: Any, spec: DetectorSpec, manifest: Manifest | None) -> Iterator[str]:
    """Compare with what a plan fixes: its batch sizes and, for a CUDA graph, every dimension."""
    if manifest and manifest.spec != spec:
        yield "the plan was built for another detector"
    most = manifest.batch[2] if manifest else config.max_batch_size
    if config.max_batch_size > most:
        yield f"max_batch_size is {config.max_batch_size}, the plan takes batches up to {most}"
    low = manifest.batch[0] if manifest else 1
    if low != 1:
        yield f"the plan takes no batch below {low}, and a lone request makes a batch of 1"
    for graph in config.optimization.cuda.graph_spec:
        found = {name: tuple(shape.dim) for name, shape in graph.input.items()}
        wanted = {name: tensor.shape for name, tensor in spec.inputs.items()}
        if found != wanted:
            yield f"the CUDA graph of batch {graph.batch_size} is for {found}, the graph's inputs are {wanted}"
        if not 1 <= graph.batch_size <= config.max_batch_size:
            yield f"a CUDA graph is for batch {graph.batch_size}, max_batch_size is {config.max_batch_size}"
    wanted_file = config.default_model_filename
    if wanted_file != "model.plan":
        yield f"default_model_filename is {wanted_file!r}; `build` writes model.plan"
