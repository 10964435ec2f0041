"""How attention is coloured: controls that act in the browser alone."""

ATTENTION = {"scale": "lab", "gamma": 1.0, "threshold": 0.0, "sink": False}
