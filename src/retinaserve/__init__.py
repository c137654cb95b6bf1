"""RetinaNet from labelled images to boxes over HTTP and gRPC, on NVIDIA's serving stack."""
