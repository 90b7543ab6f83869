"""The messages must be the same on the wire as everyone else's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from synthetic import GOLDEN

from bczoo.data import schema
from bczoo.data.schema import annotation, inference, shared

DATA = Path(schema.__file__).parent
FILES = [DATA / f"{name}.proto" for name in ("shared", "video_annotation", "video_inference")]


def test_bytes_of_a_minimal_exchange():
    frame = inference.Frame(width=1, height=1, data=b"\x01\x02\x03", id=7)
    assert frame.SerializeToString() == bytes.fromhex("0801 1001 1a03010203 2007")
    action = inference.Action(
        keys=["w"],
        id=7,
        mouse_action=inference.MouseAction(mouse_delta_px=shared.Vec2Int(x=3, y=-1), buttons_down=["0"]),
    )
    wire = bytes.fromhex("0a0177 1007 1a12 0a0d 0803 10ffffffffffffffffff01 220130")
    assert action.SerializeToString() == wire
    assert inference.Action.FromString(wire) == action


def test_map_is_an_entry_message_on_the_wire():
    message = annotation.TokenizerEmbeddingMap()
    message.text_embeddings["g"].values.extend([1.0, 2.0])
    #                         entry: key=1 "g", value=2 FloatTensor: values=2 packed floats
    assert message.SerializeToString() == bytes.fromhex("0a0f 0a0167 120a 1208 0000803f 00000040")


def test_oneof_keeps_one():
    event = annotation.InputEvent(keyboard_event={"key": "w", "pressed": True}, time=5)
    assert event.WhichOneof("event") == "keyboard_event"
    event.wheel_event.x = 3
    assert event.WhichOneof("event") == "wheel_event"
    assert not event.HasField("keyboard_event")
    assert event.time == 5


def test_a_written_recording_reads_back_without_loss():
    data = (GOLDEN / "recording/rec_0001/annotation.proto").read_bytes()
    message = annotation.VideoAnnotation.FromString(data)
    assert len(message.SerializeToString()) == len(data)
    message.DiscardUnknownFields()
    assert len(message.SerializeToString()) == len(data), "fields that the schema does not know"
    assert message.metadata.env.env_subtype == "be-a-shark"
    assert len(message.frame_annotations) == 47


def test_numbers_and_types_of_fields_in_which_messages_differ():
    """Some that the recording above does not hold."""
    fields = {
        f"{message.DESCRIPTOR.name}.{field.name}": (field.number, field.type)
        for message in (annotation.MouseAction, annotation.GamePadAction, annotation.VideoAnnotation)
        for field in message.DESCRIPTOR.fields
    }
    assert fields["MouseAction.buttons_down"] == (9, 9)
    assert fields["MouseAction.mouse_delta_px"] == (3, 11)
    assert fields["GamePadAction.right_trigger"] == (5, 2)
    assert fields["VideoAnnotation.metadata"] == (2, 11)
    assert fields["VideoAnnotation.version"] == (6, 5)


def test_the_files_are_what_protoc_reads(tmp_path):
    """Where grpcio-tools is installed, which is not asked for."""
    protoc = pytest.importorskip("grpc_tools.protoc")
    assert protoc.main(["", f"-I{DATA}", f"--descriptor_set_out={tmp_path / 'set'}", *map(str, FILES)]) == 0
    theirs = descriptor_pb2.FileDescriptorSet.FromString((tmp_path / "set").read_bytes())
    for file in theirs.file:
        for message in file.message_type:
            for part in (message, *message.nested_type):
                for field in part.field:
                    field.ClearField("json_name")
        assert schema._parse((DATA / file.name).read_text(), file.name) == file


def test_every_field_of_the_files_is_read():
    for path, messages in zip(FILES, (shared, annotation, inference), strict=True):
        numbers = re.findall(r"(\w+) = (\d+);", path.read_text())
        fields = [field for message in vars(messages).values() for field in message.DESCRIPTOR.fields]
        assert sorted((f.name, str(f.number)) for f in fields) == sorted(numbers) and numbers


@pytest.mark.parametrize("line", ["optional int32 x = 1;", "enum Colour {", "int32 x = 1; int32 y = 2;"])
def test_a_line_beyond_the_part_of_the_language_is_refused(line):
    text = f'syntax = "proto3";\npackage p;\nmessage M {{\n{line}\n}}'
    with pytest.raises(ValueError, match=re.escape(repr(line))):
        schema._parse(text, "p.proto")


def test_import_is_light():
    code = "import sys, bczoo.data.schema; assert not {'torch', 'av', 'numpy'} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", code], check=True)
