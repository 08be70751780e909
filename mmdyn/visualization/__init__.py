"""Pictures of decisions."""

from mmdyn.visualization.decisions import dim_dropped, draw_panels, kept_map

__all__ = ['dim_dropped', 'draw_panels', 'kept_map']
