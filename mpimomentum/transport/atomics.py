"""Words in a node's shared memory by the processor's own atomics.

MPI's atomics may take a lock inside, which a process that is killed at the wrong moment never gives
back. Where ranks are to outlive others, every word is therefore changed by one instruction.
"""

from __future__ import annotations

from mpimomentum.codecs import extension
from mpimomentum.measures import Traffic
from mpimomentum.transport.environment import Environment
from mpimomentum.transport.memory import Memory
from mpimomentum.worker import Handle


def available() -> bool:
    """Whether the compiled extension is there, and of sources that have them."""
    return hasattr(extension.kernels, "atomic_load")


class AtomicMemory(Memory):
    """Segments of one node, whose words know no MPI; see :class:`Memory`."""

    def __init__(self, env: Environment, nbytes: int, cleared: int | None = None) -> None:
        super().__init__(env, nbytes, cleared)
        assert self.shared
        self._base = [self._segments[r].ctypes.data for r in range(env.size)]

    def word(self, rank: int, offset: int = 0) -> int:
        """Read a word of `rank`'s segment atomically."""
        return int(extension.kernels.atomic_load(self._base[rank] + offset))

    def compare_and_swap(self, rank: int, compare: int, new: int, offset: int = 0) -> int:
        """Set a word to `new` if it is `compare`; return what it was."""
        at = self._base[rank] + offset
        return int(extension.kernels.atomic_compare_and_swap(at, compare, new))

    def fetch_add(self, rank: int, k: int, offset: int = 0) -> int:
        """Add `k` to a word; return what it was."""
        return int(extension.kernels.atomic_fetch_add(self._base[rank] + offset, k))

    def let_go(self) -> None:
        """Use it no more, but leave it to the end of the process: freeing would wait for all."""
        self._segments.clear()


class AtomicCounter:
    """A worker.Counter kept in the memory of rank `home`, which need not live. Collective to make.

    Parameters
    ----------
    env : Environment
    home : int
    """

    def __init__(self, env: Environment, home: int) -> None:
        if not 0 <= home < env.size:
            raise ValueError(f"rank {env.rank}: counter home {home} is not in 0…{env.size - 1}")
        self._home = home
        self.at_home = env.rank == home
        self.traffic = Traffic()
        self._memory = AtomicMemory(env, 8)

    def fetch_add(self, k: int = 1) -> Handle[int]:
        """Add `k`; returns the value before."""
        if not self.at_home:
            self.traffic.count(0)
        return Handle.completed(self._memory.fetch_add(self._home, k))

    def close(self) -> None:
        """Free the memory; collective."""
        self._memory.close()


class AtomicRequestWord:
    """A request word as :class:`~mpimomentum.transport.request_word.RequestWord` is.

    Parameters
    ----------
    env : Environment
    """

    def __init__(self, env: Environment) -> None:
        self._rank, self._size = env.rank, env.size
        self._memory = AtomicMemory(env, 8)

    def ask(self, what: int) -> None:
        """Set the bits `what` in every rank's word."""
        for rank in range(self._size):
            found = self._memory.word(rank)
            while found & what != what:
                before = self._memory.compare_and_swap(rank, found, found | what)
                found = found | what if before == found else before

    def asked(self) -> int:
        """Return this rank's word, 0 if nothing is asked."""
        return self._memory.word(self._rank)

    def clear(self) -> None:
        """Set this rank's word to 0; only while no rank may ask."""
        found = self.asked()
        while found and (now := self._memory.compare_and_swap(self._rank, found, 0)) != found:
            found = now

    def close(self) -> None:
        """Free the memory; collective."""
        self._memory.close()
