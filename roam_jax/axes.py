"""Axis letters of every einsum, einops pattern and shape string in the project.

| letter | axis                                                            |
|--------|-----------------------------------------------------------------|
| B      | batch                                                           |
| T      | environment frames (camera steps)                               |
| F      | latent frames (1 + (T - 1) / 4)                                 |
| C      | channels of frames or latents                                   |
| H, W   | height and width                                                |
| N      | cells (tokens) of a sequence; M where keys differ from queries  |
| S      | text tokens                                                     |
| D      | width of a token                                                |
| E      | width of the conditioning (time) embedding                      |
| K      | attention heads                                                 |
| A      | action dimensions                                               |
| J      | dimensions of the robot's state                                 |
| V      | cameras beside the first                                        |
| P      | actions of the predicted chunk                                  |
| L      | distinct blocks (depth)                                         |
| R      | rounds                                                          |
"""

# Names of the mesh axes, outermost first.
DATA = "data"
FSDP = "fsdp"
SEQUENCE = "sequence"
TENSOR = "tensor"
MESH_AXES = (DATA, FSDP, SEQUENCE, TENSOR)
# Those that the rows of a batch are split over.
BATCH_AXES = (DATA, FSDP)
