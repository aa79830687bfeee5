"""Rows in the columns of the hub's data sets, a few of each task."""

from __future__ import annotations

PASSAGE = "The Dutch team Ajax met Real Madrid on Tuesday.\n@highlight\nRuud scored for Ajax"

ROWS = {
    "boolq": [
        {"question": "is the sky blue", "passage": "Sky -- The sky looks blue by day.", "idx": 0, "label": 1},
        {"question": "do cats bark", "passage": "Cat -- Cats meow.", "idx": 1, "label": 0},
    ],
    "cb": [
        {"premise": "It was raining. He knew it.", "hypothesis": "it was raining", "idx": 0, "label": 0},
        {"premise": "Is it raining?", "hypothesis": "it is raining", "idx": 1, "label": 2},
        {"premise": "It was not raining.", "hypothesis": "it was raining", "idx": 2, "label": 1},
    ],
    "copa": [
        {"premise": "My body cast a shadow over the grass.", "choice1": "The sun was rising.",
         "choice2": "The grass was cut.", "question": "cause", "idx": 0, "label": 0},
        {"premise": "The man lost his balance on the ladder.", "choice1": "He climbed up.",
         "choice2": "He fell off.", "question": "effect", "idx": 1, "label": 1},
    ],
    "multirc": [
        {"paragraph": "Ann met Bob.", "question": "Who met Bob?", "answer": answer,
         "idx": {"paragraph": 0, "question": 0, "answer": number}, "label": label}
        for number, (answer, label) in enumerate([("Ann", 1), ("Eve", 0), ("She, Ann", 1)])
    ],
    "record": [
        {"passage": PASSAGE, "query": "@placeholder won the cup, said Ruud",
         "entities": ["Ajax", "Real Madrid", "Ruud", "Dutch", "Ajax"],
         "entity_spans": {"text": ["Ajax"], "start": [15], "end": [19]}, "answers": ["Ajax", "Dutch"],
         "idx": {"passage": 0, "query": 0}},
        {"passage": PASSAGE, "query": "A goal by @placeholder", "entities": ["Ruud", "Ajax"],
         "entity_spans": {"text": ["Ruud"], "start": [60], "end": [64]}, "answers": ["Ruud"],
         "idx": {"passage": 0, "query": 1}},
    ],
    "rte": [
        {"premise": "Cats are mammals.", "hypothesis": "Cats are animals.", "idx": 0, "label": 0},
        {"premise": "Cats sleep.", "hypothesis": "Dogs sleep.", "idx": 1, "label": 1},
    ],
    "wic": [
        {"word": "place", "sentence1": "Do you want to come over to my place later?",
         "sentence2": "A political system with no place for the less prominent groups.", "start1": 31, "start2": 27,
         "end1": 36, "end2": 32, "idx": 0, "label": 0},
        {"word": "approach", "sentence1": "Approach a task.", "sentence2": "To approach the city.", "start1": 0,
         "start2": 3, "end1": 8, "end2": 11, "idx": 1, "label": 0},
    ],
    "wsc.fixed": [
        {"text": "Mark told Pete many lies about himself.", "span1_index": 0, "span2_index": 6, "span1_text": "Mark",
         "span2_text": "himself", "idx": 0, "label": 1},
        {"text": "Mark told Pete many lies about himself.", "span1_index": 2, "span2_index": 6, "span1_text": "Pete",
         "span2_text": "himself", "idx": 1, "label": 0},
    ],
    "axb": [
        {"sentence1": "The cat sat on the mat.", "sentence2": "The cat did not sit on the mat.", "idx": 0, "label": 1},
        {"sentence1": "A cat sat.", "sentence2": "An animal sat.", "idx": 1, "label": 0},
    ],
    "axg": [
        {"premise": "The nurse called the doctor because she was ill.", "hypothesis": "The nurse was ill.", "idx": 0,
         "label": 0},
        {"premise": "The nurse called the doctor because she was ill.", "hypothesis": "The doctor was ill.", "idx": 1,
         "label": 1},
    ],
    "swag": [
        {"video-id": "anetv_jkn6uvmqwh4", "fold-ind": "3416", "startphrase": "Members of the procession walk. They",
         "sent1": "Members of the procession walk.", "sent2": "They", "gold-source": "gold", "ending0": "play horns.",
         "ending1": "fall asleep.", "ending2": "are trees.", "ending3": "swim home.", "label": 0},
        {"video-id": "lsmdc1", "fold-ind": "1", "startphrase": "She opens the hood. Then, she", "sent1": "She opens.",
         "sent2": "Then, she", "gold-source": "gen", "ending0": "sings.", "ending1": "examines the engine.",
         "ending2": "is a car.", "ending3": "eats the hood.", "label": 1},
    ],
    "race": [
        {"example_id": "high1.txt", "article": "Last week I spoke with some students.", "answer": "C",
         "question": "Whom did he speak with?", "options": ["Nobody", "Cats", "Students", "The king"]},
        {"example_id": "high1.txt", "article": "Last week I spoke with some students.", "answer": "A",
         "question": "When was it? _", "options": ["Last week", "Today", "Never", "In 1900"]},
    ],
}  # fmt: skip
