"""What tunnels keep in IFLA_INFO_DATA."""

from __future__ import annotations

from collections.abc import Mapping

from ckpt.kernel.rtnl_codecs import Table

OPTIONS: Mapping[str, Table] = {}
"""The kinds of tunnel that travel."""
