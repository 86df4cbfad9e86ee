"""The studio's page: a tab for each model, to draw a condition, translate it, and edit the results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.themes import Base

from piti.studio.service.service import Loaded, Studio
from piti.studio.ui.panel import Panel, slug

_FONTS = ["system-ui", "Segoe UI", "Helvetica Neue", "Arial", "sans-serif"]
_HEAD = """
<div class="masthead">
 <h1>piti studio</h1>
 <p>Draw what is where; a diffusion model makes photographs of it.</p>
</div>
"""
_STYLE = """
.gradio-container .fillable { max-width: 1560px !important; padding: 0.6rem 1.2rem !important; }
.uploads { gap: 0.35rem !important; }
.amounts .live { min-width: 130px !important; }  /* in a narrow column on a line of its own */
:is(button, a, input, select, summary, [tabindex]):focus-visible {
  outline: 3px solid var(--color-accent) !important; outline-offset: 2px;
}
[role=tab][aria-selected=true] { color: var(--primary-700) !important; }
.dark [role=tab][aria-selected=true] { color: var(--primary-300) !important; }
.masthead { align-items: baseline; display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; padding: 0.3rem 0 0.1rem; }
.masthead h1 { font-size: 1.35rem; font-weight: 650; margin: 0; }
.masthead p { color: var(--body-text-color-subdued); margin: 0; }
.editing { background: var(--color-accent-soft); border-radius: 8px; gap: 0.6rem !important; padding: 0.7rem 0.9rem; }
.editing p { margin: 0; }
.actions button { min-height: 2.9rem; }
@media (max-width: 640px) { .gradio-container .fillable { padding: 0.4rem !important; } }
"""
_TITLES = {"mask": "Paint a mask", "palette": "Paint a mask", "sketch": "Draw a sketch", "text": "Describe a picture"}


def page_options() -> dict[str, Any]:
    """Options to mount the page with: system fonts and nothing from other servers."""
    plain = Base(font=_FONTS, font_mono=["monospace"], primary_hue="teal", neutral_hue="slate")
    theme = plain.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        body_text_color_subdued="*neutral_600",
        block_info_text_color="*neutral_600",
    )
    return {"theme": theme, "css": _STYLE, "footer_links": [], "ssr_mode": False, "show_error": True}


def build_page(studio: Studio) -> gr.Blocks:
    """The page of a studio whose models are loaded."""
    titles = _titles(studio.models)
    with gr.Blocks(title="piti studio", analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)) as page:
        gr.HTML(_HEAD)
        with gr.Tabs(elem_id="models"):
            for number, (name, loaded) in enumerate(studio.models.items()):
                taken = [slug(other) for other in list(studio.models)[:number]]
                panel_id = f"{slug(name)}-{number}" if slug(name) in taken else slug(name)
                with gr.Tab(titles[name], id=panel_id):
                    Panel(studio, loaded, panel_id).build()
    return page


def _titles(models: Mapping[str, Loaded]) -> dict[str, str]:
    """Titles of the tabs: what is done there, with the model's name if two titles would be equal."""
    plain = {name: _TITLES.get(loaded.kind, f"Upload a {loaded.kind}") for name, loaded in models.items()}
    return {
        name: title if list(plain.values()).count(title) == 1 else f"{title} ({name})" for name, title in plain.items()
    }
