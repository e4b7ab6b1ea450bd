"""What :mod:`mpimomentum.runtime.objective` is made of; import from there."""
