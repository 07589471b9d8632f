"""Every fault at every step of a moment: no guest stays on an overlay."""
