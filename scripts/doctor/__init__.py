"""What is installed, what is missing, what does not fit together: the checks behind `retinaserve doctor`."""

from retinaserve.scripts.doctor.check import Check, Probe, Status, examine

__all__ = ["Check", "Probe", "Status", "examine"]
