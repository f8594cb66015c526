"""Optimisers compared on fits of this project's networks: ``python -m benchmarks.optimisers``.

The methods are written from their papers, in plain torch and for this comparison only; what the
codec runs is :mod:`nifcore.soap`, which takes part as it is. A method has one call,
``step(gradients, rate)``, as the codec's optimisers have.
"""
