"""What is installed, what is missing, what does not fit together: the checks behind `retinaserve doctor`."""
