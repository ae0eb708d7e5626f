"""A small playground for the end of a notebook: one prompt, base and instruct side by side.

Needs a kernel that runs; what a saved notebook keeps is the static example that the notebook shows
beside it. Left out: streaming, conversations of several turns.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from course_lib.kit.tables import side_by_side

if TYPE_CHECKING:
    import ipywidgets

Loaded = tuple[Any, Any]  # model, tokenizer


def write_pair(
    base: Loaded, instruct: Loaded, prompt: str, *, temperature: float, seed: int, length: int = 110
) -> tuple[str, str]:
    """The base model's continuation of the raw prompt, and the instruct model's answer to it."""
    from course_lib.algorithms.chat import ask, complete

    sampling = {"temperature": temperature, "seed": seed, "max_new_tokens": length}
    raw = complete(*base, [prompt], **sampling)[0]
    return raw, ask(*instruct, [prompt], **sampling)[0]


def playground(
    pairs: Mapping[str, Callable[[], tuple[Loaded, Loaded]]],
    prompt: str,
    *,
    length: int = 110,
    seed: int = 0,
) -> ipywidgets.Widget:
    """A form with prompt, model, temperature and a button; each click draws with the next seed.

    Args:
        pairs: the menu's names -> a function that loads (base, instruct); called once, on demand.
        prompt: what stands in the form at first; its answers at `seed` are shown at once.
        length: new tokens at most.
    """
    import ipywidgets as widgets

    loaded: dict[str, tuple[Loaded, Loaded]] = {}
    wide = widgets.Layout(width="98%")
    text = widgets.Textarea(prompt, description="Prompt", layout=wide, rows=2)
    menu = widgets.Dropdown(options=list(pairs), description="Model")
    heat = widgets.FloatSlider(0.7, min=0.0, max=1.5, step=0.1, description="Temperature")
    button = widgets.Button(description="Write", button_style="primary")
    shown = widgets.HTML(layout=wide)
    clicks = {"seed": seed}

    def write(_: Any = None) -> None:
        button.disabled = True
        try:
            name = menu.value
            if name not in loaded:
                shown.value = "<p>Loading the models …</p>"
                loaded[name] = pairs[name]()
            options = {"temperature": heat.value, "seed": clicks["seed"], "length": length}
            texts = write_pair(*loaded[name], text.value.strip() or prompt, **options)
            heads = (f"base ({name})", f"instruct ({name})")
            shown.value = (
                side_by_side([dict(zip(heads, texts, strict=True))])._repr_html_()
                + f"<p>temperature {heat.value:.1f}, seed {clicks['seed']}</p>"
            )
        except Exception as error:  # a click must not end in silence
            shown.value = f"<p><b>This did not work:</b> {html.escape(str(error))}</p>"
        finally:
            clicks["seed"] += 1
            button.disabled = False

    button.on_click(write)
    write()
    return widgets.VBox([text, widgets.HBox([menu, heat, button]), shown], layout=wide)
