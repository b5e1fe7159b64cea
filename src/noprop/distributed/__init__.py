"""Engines that train the groups of a run beyond this machine."""

from noprop.distributed.ray_engine import RayEngine

__all__ = ["RayEngine"]
