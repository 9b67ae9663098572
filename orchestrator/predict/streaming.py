"""Text on the terminal as it is generated, word by word."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttmoe.routed import RoutedModel


def terminal_streamer(model: RoutedModel) -> Any:
    """Return what prints the tokens of a generated text to standard output as they come: transformers' streamer.

    What the chat template writes before each answer, such as empty reasoning, is left out, as it is of the answer.
    """
    from transformers import TextStreamer

    from ttmoe.chat_template import ChatTemplate

    lead = ChatTemplate(model.tokenizer).lead if any(each.chat_template for each in model.manifests.values()) else ""

    class Streamer(TextStreamer):
        """Prints texts without the lead of the template, which it holds back until it is known to be one."""

        waiting, held = lead, ""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if self.waiting:
                self.held += text
                if self.waiting.startswith(self.held.strip()) and not stream_end:
                    return
                text, self.waiting = self.held.lstrip().removeprefix(lead).lstrip(), ""
            sys.stdout.write(text + ("\n" if stream_end else ""))
            sys.stdout.flush()

    return Streamer(model.tokenizer, skip_prompt=True, skip_special_tokens=True)
