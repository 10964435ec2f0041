"""Live views for the notebook: they wire controls to a session and to figures."""

from bloomlab.widgets.attention import AttentionSession, AttentionView

__all__ = ["AttentionSession", "AttentionView"]
