"""The card of this metric, as the page of its Space."""

from pathlib import Path

import gradio

card = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
with gradio.Blocks() as page:
    gradio.Markdown(card.split("---", 2)[2])

if __name__ == "__main__":
    page.launch()
