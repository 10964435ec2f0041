"""How a view is put into a notebook: live, and a picture for when nothing is live.

JupyterLab keeps no state of widgets: a notebook that is opened again says "model not found" in a
live view's place. So the picture is an output of its own there, which the style of a live view
hides (it is marked by its two properties). Other front ends show a bundle's picture by themselves.
"""

import os
import sys
from collections.abc import Mapping
from typing import Any

from IPython.display import display

from bloomlab.widgets.stills import WIDTH

PNG = "image/png"
MARKED = {PNG: {"width": WIDTH, "unconfined": True}}


def show(bundle: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Display a bundle with its picture apart, where that is needed."""
    live = {mime: data for mime, data in bundle.items() if mime != PNG}
    apart = PNG in bundle and not ("google.colab" in sys.modules or "VSCODE_PID" in os.environ)
    display(live if apart else dict(bundle), metadata=dict(metadata), raw=True)
    if apart:
        display({PNG: bundle[PNG]}, metadata=MARKED, raw=True)
