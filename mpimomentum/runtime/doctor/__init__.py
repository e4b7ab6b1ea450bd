"""``mpimomentum doctor``: what is here, what it means, and what to do where it is not well."""
