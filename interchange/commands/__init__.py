"""The commands of both backends but for their tensors: ``train(config, backend)`` and the like.

``torch_impl.train`` and ``tf_impl.train`` hand over their backend (``interchange.backend``).
"""
