"""Shapes of the tensors of models that benchmarks step."""


def resnet18() -> list[tuple[int, ...]]:
    """Of ResNet-18, 62 in its order, as torch lays them out: rows of a layer's matrix are axis 0."""
    shapes, before = [(64, 3, 7, 7), (64,), (64,)], 64
    for width in (64, 128, 256, 512):
        for block in range(2):
            given = before if block == 0 else width
            shapes += [(width, given, 3, 3), (width,), (width,), (width, width, 3, 3), (width,), (width,)]
            if given != width:
                shapes += [(width, given, 1, 1), (width,), (width,)]
        before = width
    return [*shapes, (1000, 512), (1000,)]
