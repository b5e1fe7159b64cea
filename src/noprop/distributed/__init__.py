"""Runs over machines: the processes of torchrun, and engines that train groups elsewhere."""

from noprop.distributed.ray_engine import RayEngine

__all__ = ["RayEngine"]
