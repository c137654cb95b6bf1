"""What is wrong with a labelled data set, found before it is trained on: `retinaserve data check`."""
