"""The subject rules against their test vectors, and that no two things can have one name."""

import json
import zlib
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicekit.log import subjects

VECTORS = json.loads((Path(__file__).parents[3] / "proto/vectors/subjects.json").read_text())
IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=255)


@pytest.mark.parametrize("vector", VECTORS["ids"], ids=lambda v: v["token"])
def test_partition_and_token_match_the_vectors(vector: dict) -> None:
    assert subjects.encode_token(vector["id"]) == vector["token"]
    assert subjects.decode_token(vector["token"]) == vector["id"]
    assert zlib.crc32(vector["id"].encode()) == vector["crc32"]
    for count, partition in vector["partitions"].items():
        assert subjects.partition_of(vector["id"], int(count)) == partition == vector["crc32"] % int(count)


@pytest.mark.parametrize("vector", VECTORS["subjects"], ids=lambda v: v["kind"])
def test_subjects_match_the_vectors(vector: dict) -> None:
    made = subjects.subject_of(vector["kind"], vector["id"], vector["partition_count"])
    assert made == vector["subject"]
    parts = subjects.parse_subject(made)
    assert (parts.kind, parts.id) == (vector["kind"], vector["id"])
    assert parts.partition == subjects.partition_of(vector["id"], vector["partition_count"])


def test_named_functions_cover_every_kind_once() -> None:
    room, user = "!r:x", "@u:x"
    made = [
        subjects.room_input_subject(room, 16),
        subjects.room_output_subject(room, 16),
        subjects.room_receipt_subject(room, 16),
        subjects.typing_subject(room, 16),
        subjects.to_device_subject(user, 16),
        subjects.device_list_subject(user, 16),
        subjects.account_data_subject(user, 16),
        subjects.device_subject(user, 16),
        subjects.presence_subject(user, 16),
    ]
    kinds = [subjects.parse_subject(subject).kind for subject in made]
    assert sorted(kinds) == sorted((*subjects.ROOM_KINDS, *subjects.USER_KINDS))


@pytest.mark.parametrize("token", VECTORS["bad_tokens"])
def test_a_token_that_we_would_not_make_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="subject token"):
        subjects.decode_token(token)


@given(IDS)
def test_tokens_are_injective_and_hold_no_special_character(id_: str) -> None:
    token = subjects.encode_token(id_)
    assert subjects.decode_token(token) == id_
    assert token == urlsafe_b64encode(id_.encode()).decode().replace("=", "")
    assert not set(token) & set(". >*\t\r\n$")


@given(IDS, st.sampled_from(subjects.ROOM_KINDS + subjects.USER_KINDS), st.integers(1, 1024))
def test_each_subject_belongs_to_exactly_one_stream(id_: str, kind: str, partitions: int) -> None:
    subject = subjects.subject_of(kind, id_, partitions)
    owners = [
        stream
        for stream, filters in subjects.STREAM_SUBJECTS.items()
        if any(subject.startswith(pattern.removesuffix(">")) for pattern in filters)
    ]
    assert len(owners) == 1
    assert subject.startswith(
        subjects.partition_filter(kind, subjects.partition_of(id_, partitions)).removesuffix(">")
    )


def test_an_event_position_holds_sequence_and_index() -> None:
    position = subjects.event_position(17, 4095)
    assert position < subjects.event_position(18, 0)
    assert subjects.sequence_of_position(position) == 17
