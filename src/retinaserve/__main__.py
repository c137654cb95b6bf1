"""`python -m retinaserve`, and `torchrun -m retinaserve`, are the command `retinaserve`."""

from retinaserve.scripts.cli.main import main

if __name__ == "__main__":
    main(prog_name="retinaserve")
