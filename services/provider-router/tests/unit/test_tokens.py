import json

from provider_router import tokens


def test_a_text_is_counted_as_openai_counts_it() -> None:
    assert tokens.count_text("hello world") == 2
    assert tokens.count_text("") == 0
    assert tokens.count_text("<|endoftext|>") > 1


def test_a_request_is_counted_with_its_messages_tools_and_images() -> None:
    def count(**fields: object) -> int:
        return tokens.count_request(json.dumps(fields).encode())

    one = count(messages=[{"role": "user", "content": "hello world"}])
    assert one == 3 + 4 + 2
    assert count(messages=[{"role": "user", "content": [{"type": "text", "text": "hello world"}]}]) == one
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10_000}}
    assert count(messages=[{"role": "user", "content": [{"type": "text", "text": "hello world"}, image]}]) == one + 85
    assert count(messages=[{"role": "user", "content": "hello world"}], tools=[{"type": "function"}]) > one
    assert count() == 3
