"""Where windows are whose vectors live on a device (docs/gpu.md); staging.py chooses."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mpimomentum.transport.device_window import DeviceWindow
from mpimomentum.transport.direct_window import DirectWindow
from mpimomentum.transport.ipc_window import IpcWindow
from mpimomentum.transport.pinned_window import PinnedWindow

OF_DEVICE: Mapping[str, Callable[..., DeviceWindow]] = {
    "pinned": PinnedWindow,
    "ipc": IpcWindow,
    "direct": DirectWindow,
}
"""By placement, what makes a window: (env, engine, lane, name, x0, guard) -> window."""
