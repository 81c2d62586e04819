from __future__ import annotations

from collections import Counter

from gptlab.evaluation.prompts import topic_prompts

TOPICS = ("science and technology", "history and culture", "economics and politics", "psychology and social issues")


def test_ten_questions_on_each_of_four_topics_all_different() -> None:
    prompts = topic_prompts()
    assert Counter(prompt.topic for prompt in prompts) == dict.fromkeys(TOPICS, 10)
    assert len({prompt.text.casefold() for prompt in prompts}) == 40
    assert all(prompt.text == prompt.text.strip() and 20 < len(prompt.text) < 120 for prompt in prompts)


def test_the_order_is_always_the_same() -> None:
    assert topic_prompts() == topic_prompts()
    assert [prompt.topic for prompt in topic_prompts()] == [topic for topic in TOPICS for _ in range(10)]
