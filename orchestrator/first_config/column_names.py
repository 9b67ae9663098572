"""Names that people give to columns, and what such a column is for. All are in lower case, with ``_`` between words."""

from __future__ import annotations

LABEL_NAMES = (
    "label", "labels", "class", "category", "target", "sentiment", "intent", "topic", "gold_label", "gold",
    "emotion", "tag", "tags", "polarity", "stance", "verdict", "outcome", "y", "rating", "stars", "score", "overall",
    "spam", "is_spam", "toxic", "severity", "priority", "level", "department", "status", "type", "coarse_label",
    "label_text", "label_name", "choice", "choices", "classification", "annotation",
)  # fmt: skip
"""Names of labels; of two, the first is the better one."""
LABEL_WORDS = frozenset(("label", "class", "category", "sentiment", "intent", "topic", "emotion", "polarity"))
"""Words by which a longer name is that of a label, as in ``ticket_category``."""
TEXT_NAMES = (
    "text", "sentence", "review", "content", "message", "body", "comment", "utterance", "tweet", "document",
    "question", "query", "post", "statement", "email", "sms", "article", "input", "prompt",
)  # fmt: skip
"""Names of texts; of two, that with the longer values is the better one."""
PAIR_NAMES = (
    ("premise", "hypothesis"), ("sentence1", "sentence2"), ("sentence_1", "sentence_2"),
    ("sentence_a", "sentence_b"), ("question1", "question2"), ("text1", "text2"), ("text_1", "text_2"),
    ("text_a", "text_b"), ("s1", "s2"), ("first", "second"), ("query", "passage"), ("query", "document"),
    ("question", "passage"), ("question", "sentence"), ("question", "context"), ("question", "answer"),
    ("claim", "evidence"), ("query", "title"), ("text", "text_pair"),
)  # fmt: skip
"""Names of two texts that are read together."""
PROMPT_ANSWER_NAMES = tuple(
    (prompt, answer)
    for prompt in ("prompt", "instruction")
    for answer in ("answer", "completion", "response", "output", "reply", "target", "chosen")
)
"""Names of a prompt and its answer that nothing else has."""
WEAK_PROMPT_ANSWER_NAMES = (
    ("question", "answer"), ("question", "response"), ("input", "output"), ("input", "target"),
    ("source", "target"), ("query", "answer"), ("query", "response"), ("article", "highlights"),
    ("document", "summary"), ("article", "summary"), ("text", "summary"), ("dialogue", "summary"),
    ("question", "reply"), ("message", "reply"),
)  # fmt: skip
"""Names of a prompt and its answer if the rows have no label."""
MESSAGES_NAMES = ("messages", "conversations", "conversation", "chat", "dialog", "dialogue")
"""Names of lists of messages."""
CHOICES_NAMES = ("choices", "options", "endings", "candidates", "answers", "alternatives")
"""Names of lists of options."""
OPTION_COLUMN_NAMES = (
    ("choice1", "choice2"), ("option1", "option2"), ("solution1", "solution2"), ("sol1", "sol2"),
    ("ending1", "ending2"), ("choice_1", "choice_2"), ("option_1", "option_2"), ("choice_a", "choice_b"),
    ("option_a", "option_b"), ("a", "b"), ("ending0", "ending1"), ("choice0", "choice1"),
    ("option0", "option1"), ("answer_a", "answer_b"),
)  # fmt: skip
"""Names of the first two of several columns with an option each."""
RIGHT_OPTION_NAMES = (
    "label", "answer", "answerkey", "answer_key", "answer_index", "answer_idx", "correct", "correct_index",
    "gold", "target", "correct_answer", "solution", "cop",
)  # fmt: skip
"""Names of the index of the right option."""
OTHER_NAMES = frozenset((
    "id", "idx", "index", "uid", "uuid", "guid", "key", "hash", "url", "link", "date", "time", "timestamp",
    "datetime", "created_at", "updated_at", "created", "updated", "user", "username", "user_id", "author",
    "annotator", "annotation_id", "annotator_id", "completed_by", "lead_time", "lang", "language", "split",
    "version", "index_level_0", "unnamed_0", "inner_id", "project", "file_upload", "from_name", "to_name",
    "origin", "was_cancelled", "ground_truth", "total_annotations", "cancelled_annotations",
    "total_predictions", "comment_count", "unresolved_comment_count", "last_comment_updated_at", "updated_by",
    "unique_id", "source", "confidence", "draft_created_at", "last_action", "result_count", "prediction",
    "parent_prediction", "parent_annotation", "last_created_by", "task", "import_id", "row", "row_id", "doc_id",
    "message_id",
))  # fmt: skip
"""Names of columns that are neither text nor label."""
