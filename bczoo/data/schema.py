"""The protobuf messages of recordings and of the inference socket, built at import without protoc.

Place in the pipeline: `recording.py` reads and writes ``annotation.VideoAnnotation`` (the file
``annotation.proto`` of a recording); the socket server reads ``inference.Frame`` and answers
``inference.Action``. Field numbers and types are what counts on the wire; package names are not written
anywhere.

The tables below are the schema (proto3). A field reads ``name=number:type``; after the type ``*`` means
repeated, ``|group`` member of the oneof ``group``, and ``key->value`` a map. Fields numbered from 100 are not of the
published schema, whose readers skip them (:mod:`bczoo.serve.wire` says what they mean).

>>> annotation.VideoAnnotation.FromString(data).frame_annotations[1].user_action.keyboard.keys
"""

from __future__ import annotations

from types import SimpleNamespace

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_SHARED = """
Vec2Float: x=1:double y=2:double
Vec2Int: x=1:int32 y=2:int32
"""

_VIDEO_ANNOTATION = """
VideoAnnotationEnv: env=1:string env_subtype=2:string env_version=3:string
CaptureDeviceSpecs: os=1:string keyboard_layout=2:string window_specs=3:WindowSpecs
    screen_specs=4:ScreenSpecs* recap_version=6:int32 git_commit=7:string
ScreenSpecs: width=1:int32 height=2:int32 scale=3:double dpi=4:int32 id=5:int64
WindowSpecs: width=1:int32 height=2:int32 scale=3:double dpi=4:int32 title=5:string screen_id=6:int64
VideoAnnotationMetadata: id=1:string timestamp=2:int64 user=3:string tasks=4:string*
    frames_per_second=5:float env=6:VideoAnnotationEnv group_name=7:string golden_example_path=8:string
    video_source_info=9:VideoSourceInfo capture_device_specs=10:CaptureDeviceSpecs
    video_quality_info=11:VideoQualityInfo
VideoQualityInfo: has_facecam=1:bool aspect_ratio=2:VideoAspectRatio
VideoAspectRatio: numerator=1:int32 denominator=2:int32
VideoSourceInfo: source=1:Source video_filter_info=2:string
Source: youtube_source=1:YoutubeSource|source_type oai_source=2:OAISource|source_type
    twitch_source=3:TwitchSource|source_type
YoutubeSource: video_id=1:string query=2:string
TwitchSource: video_id=1:string game=2:string env_subtype=3:string
OAISource: video_url=1:string action_url=2:string
MouseAction: mouse_absolute_px=1:shared.Vec2Int mouse_relative=2:shared.Vec2Float
    mouse_delta_px=3:shared.Vec2Int scroll_delta_px=4:shared.Vec2Int buttons_down=9:string*
DeprecatedMouseAction: x=1:double y=2:double dx=3:double dy=4:double buttons=5:int32* new_buttons=6:int32*
KeyboardAction: keys=1:string*
GamePadButtons: south=1:bool north=2:bool east=3:bool west=4:bool dpad_up=5:bool dpad_down=6:bool
    dpad_left=7:bool dpad_right=8:bool start=9:bool select=10:bool left_bumper=11:bool right_bumper=12:bool
Stick: x=1:float y=2:float pressed=3:bool
GamePadAction: buttons=1:GamePadButtons left_stick=2:Stick right_stick=3:Stick left_trigger=4:float
    right_trigger=5:float
LowLevelAction: mouse_deprecated=1:DeprecatedMouseAction keyboard=2:KeyboardAction is_known=3:bool
    mouse=4:MouseAction game_pad=5:GamePadAction
MinecraftState: xpos=1:double ypos=2:double zpos=3:double yaw=4:double pitch=5:double milli=6:int64
    serverTick=7:int64
TwoDBlockChaseState: agent_pos_x=1:int32 agent_pos_y=2:int32 goal_pos_x=3:int32 goal_pos_y=4:int32
MiniWorldAgentState: agent_pos_x=1:double agent_pos_z=2:double agent_dir_x=5:double agent_dir_z=6:double
    camera_dir_x=7:double camera_dir_z=8:double health=9:int64 reward=10:double
MiniWorldEnvState: goal_pos_x=1:double goal_pos_z=2:double
MiniWorldState: miniworld_agent_state=1:MiniWorldAgentState miniworld_env_state=2:MiniWorldEnvState*
MouseButtonEvent: button=1:string pressed=2:bool
KeyboardEvent: key=1:string pressed=2:bool
GamePadButtonEvent: button=1:string pressed=2:bool
GamePadAxisEvent: axis=1:string value=2:float
GamePadTriggerEvent: trigger=1:string value=2:float
InputEvent: mouse_event=1:MouseButtonEvent|event keyboard_event=2:KeyboardEvent|event
    mouse_move_event=3:shared.Vec2Int|event wheel_event=4:shared.Vec2Int|event
    mouse_delta_event=5:shared.Vec2Int|event time=6:uint64 game_pad_button_event=7:GamePadButtonEvent|event
    game_pad_axis_event=8:GamePadAxisEvent|event game_pad_trigger_event=9:GamePadTriggerEvent|event
    simulated=10:bool
FrameAnnotation: user_action=1:LowLevelAction minecraft_state=2:MinecraftState|env_state
    block_chase_state=3:TwoDBlockChaseState|env_state miniworld_state=4:MiniWorldState|env_state
    action_task=5:ActionTask system_action=6:LowLevelAction frame_text_annotation=7:FrameTextAnnotation*
    frame_time=8:uint64 input_events=9:InputEvent*
FrameTextAnnotation: instruction=1:string frame_text_annotator=2:FrameTextAnnotator duration=3:float
    text_embedding_dict=4:string->TokenizerEmbeddingMap
TokenizerEmbeddingMap: text_embeddings=1:string->FloatTensor
FloatTensor: shape=1:int64* values=2:float*
FrameTextAnnotator: provider=1:string version=2:string
ActionTask: lower_level_task=1:string higher_level_task=2:string
Point3D: x=1:double y=2:double z=3:double
Changelog: change_id=1:string change_description=2:string timestamp=3:int64
VoiceEvent: time=1:uint64 speaking=2:bool
VideoAnnotation: metadata=2:VideoAnnotationMetadata frame_annotations=3:FrameAnnotation*
    task_specific_info=4:TaskSpecificInfo video_global_task=5:VideoGlobalTask version=6:int32
    video_frame_annotation_metadata=7:VideoFrameAnnotationMetadata changelog=8:Changelog*
    voice_events=9:VoiceEvent*
VideoGlobalTask: video_narrative=1:string
VideoFrameAnnotationMetadata: video_narrative=1:string
TaskSpecificInfo: pathfinding_info=1:PathfindingTaskSpecificInfo|task_info
PathfindingTaskSpecificInfo: pathfinding_trajectory=1:Point3D*
"""

_VIDEO_INFERENCE = """
Frame: width=1:int32 height=2:int32 data=3:bytes id=4:int32 text=100:string|instruction
MouseAction: mouse_delta_px=1:shared.Vec2Int|mouse_change mouse_pos=2:shared.Vec2Float|mouse_change
    scroll_delta_px=3:shared.Vec2Int buttons_down=4:string*
Action: keys=1:string* id=2:int32 mouse_action=3:MouseAction error=100:string dropped=101:int32
"""

_Field = descriptor_pb2.FieldDescriptorProto
_POOL = descriptor_pool.DescriptorPool()  # not the process-wide pool, where other packages may own the same names


def _add_field(message: descriptor_pb2.DescriptorProto, text: str, package: str) -> None:
    """Add the field that ``text`` (``name=number:type``) describes."""
    name, rest = text.split("=")
    number, kind = rest.split(":")
    kind, _, oneof = kind.partition("|")
    field = message.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
    if oneof:
        groups = [o.name for o in message.oneof_decl]
        if oneof not in groups:
            message.oneof_decl.add(name=oneof)
            groups.append(oneof)
        field.oneof_index = groups.index(oneof)
    if "->" in kind:  # on the wire a map is a repeated entry message with key = 1 and value = 2
        key, value = kind.split("->")
        entry = message.nested_type.add(name="".join(p.capitalize() for p in name.split("_")) + "Entry")
        entry.options.map_entry = True
        _add_field(entry, f"key=1:{key}", package)
        _add_field(entry, f"value=2:{value}", package)
        kind = f"{message.name}.{entry.name}*"
    if kind.endswith("*"):
        kind = kind[:-1]
        field.label = _Field.LABEL_REPEATED
    scalar = f"TYPE_{kind.upper()}"
    if scalar in _Field.Type.keys():  # noqa: SIM118 (an enum wrapper, not a dict)
        field.type = _Field.Type.Value(scalar)
    else:
        field.type = _Field.TYPE_MESSAGE
        field.type_name = f".{kind}" if kind.startswith("shared.") else f".{package}.{kind}"


def _build(package: str, table: str) -> SimpleNamespace:
    """The message classes of one table, as attributes."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    if package != "shared":
        file.dependency.append("shared.proto")
    for word in table.split():
        if word.endswith(":"):
            file.message_type.add(name=word[:-1])
        else:
            _add_field(file.message_type[-1], word, package)
    _POOL.AddSerializedFile(file.SerializeToString())
    types = _POOL.FindFileByName(file.name).message_types_by_name
    return SimpleNamespace(**{name: message_factory.GetMessageClass(types[name]) for name in types})


shared = _build("shared", _SHARED)
annotation = _build("video_annotation", _VIDEO_ANNOTATION)
inference = _build("video_inference", _VIDEO_INFERENCE)
