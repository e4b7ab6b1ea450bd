"""Compression of vectors: packed signs, error feedback, formats for slow links; and mixing."""

from mpimomentum.codecs import mix as mix
from mpimomentum.codecs import sign as sign
from mpimomentum.codecs import wire as wire
