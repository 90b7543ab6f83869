"""Examples of the help pages, by command, and which options a page shows first.

Place in the pipeline: :mod:`bczoo.cli.pages` prints them; tests check that every option in them exists.
"""

from __future__ import annotations

EXAMPLES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("fit",): (
        "bczoo fit --config quickstart",
        "bczoo fit --config 150m --data.root my_game --trainer.default_root_dir runs/a",
        "bczoo fit --config finetune --model.init_from checkpoints/doom --data.root my_game",
    ),
    ("validate",): ("bczoo validate runs/quickstart", "bczoo validate checkpoints/doom --data my_game"),
    ("test",): ("bczoo test runs/quickstart", "bczoo test checkpoints/doom --data my_game"),
    ("predict",): ("bczoo predict runs/quickstart", "bczoo predict checkpoints/doom --data my_game"),
    ("record",): (
        "bczoo record --env doom/defend_the_center --agent expert --episodes 20 --out my_game",
        "bczoo record --env doom/basic --agent keyboard --episodes 2 --out by_hand",
        "bczoo record --policy checkpoints/doom --expert expert --env doom/defend_the_center --out corrections",
    ),
    ("play",): (
        "bczoo play checkpoints/doom --env doom/health_gathering --video play.mp4",
        "bczoo play runs/quickstart --realtime true --watch true",
    ),
    ("serve",): ("bczoo serve checkpoints/doom", "bczoo serve checkpoints/doom --tcp 127.0.0.1:8089"),
    ("client-test",): ("bczoo client-test --recording my_game/REC",),
    ("bench", "data"): ("bczoo bench data my_game", "bczoo bench data my_game --window 32 --workers 8"),
    ("bench", "latency"): ("bczoo bench latency checkpoints/doom", "bczoo bench latency 150m --dtype bfloat16"),
    ("bench", "memory"): ("bczoo bench memory 1.2b --batch 4 --checkpointing true --gb 80",),
    ("bench", "train"): (
        "bczoo bench train doom --batch 4",
        "bczoo bench train 150m --device cuda --dtype bfloat16 --compile true",
    ),
    ("export",): ("bczoo export runs/quickstart my_policy --license mit",),
    ("push",): ("bczoo push my_policy org/my-policy --private true",),
    ("pull",): ("bczoo pull org/my-policy --out my_policy",),
    ("convert", "open-p2p"): ("bczoo convert open-p2p open-p2p/150M bc-150m",),
    ("convert", "to-open-p2p"): ("bczoo convert to-open-p2p bc-150m back_again",),
    ("zoo", "list"): ("bczoo zoo list", "bczoo zoo list --game doom --max_latency 10ms"),
    ("zoo", "info"): ("bczoo zoo info checkpoints/doom",),
    ("zoo", "replay"): ("bczoo zoo replay my_policy --env doom/defend_the_center",),
    ("zoo", "table"): ("bczoo zoo table", "bczoo zoo table --check true"),
    ("compare",): ("bczoo compare runs/a runs/b", "bczoo compare runs/quickstart-seed*"),
    ("plot",): ("bczoo plot runs/a runs/b --metric val/loss --out curves.png",),
    ("scaling", "run"): (
        "bczoo scaling run --config scaling/bc_cnn_doom --dry_run true",
        "bczoo scaling run --config scaling/bc_cnn_doom --print_commands true > commands.txt",
    ),
    ("scaling", "fit"): (
        "bczoo scaling fit runs/size* --out fit.json",
        "bczoo scaling fit points.csv --method parametric --columns params=N,tokens=D",
    ),
    ("scaling", "plan"): (
        "bczoo scaling plan fit.json --flops 1e21",
        "bczoo scaling plan fit.json --gpus 8 --hours 70 --mfu 0.4 --device H100 --data my_game",
    ),
    ("dream",): (
        "bczoo dream runs/wm_token_doom --context held_out/REC --out dream.mp4",
        "bczoo dream runs/wm_token_doom --context held_out/REC --actions checkpoints/doom",
    ),
    ("evaluate",): (
        "bczoo evaluate runs/wm_token_doom --data held_out",
        "bczoo evaluate runs/wm_token_doom --data held_out --idm runs/idm_doom --json measures.json",
    ),
    ("causality",): ("bczoo causality checkpoints/doom --data my_game",),
    ("attention",): ("bczoo attention checkpoints/doom --data my_game",),
    ("gap",): ("bczoo gap checkpoints/doom --env doom/defend_the_center",),
    ("study", "toy"): ("bczoo study toy --steps 100000",),
    ("study", "confusion"): ("bczoo study confusion --size smoke",),
    ("study", "characters"): ("bczoo study characters --size smoke", "bczoo study characters --dry_run true"),
    ("study", "labels"): ("bczoo study labels --size smoke", "bczoo study labels --out runs/labels"),
    ("study", "redraw"): ("bczoo study redraw runs/toy",),
    ("data", "check"): ("bczoo data check my_game", "bczoo data check my_game --json report.json"),
    ("data", "stats"): ("bczoo data stats my_game --out stats.png", "bczoo data stats my_game --json stats.json"),
    ("data", "view"): (
        "bczoo data view my_game/REC --out clip.mp4",
        "bczoo data view p2p/dataset/batch_00001.tar.gz/dataset/REC --out clip.mp4",
    ),
    ("data", "download"): ("bczoo data download p2p-toy", "bczoo data download p2p --batches 1-5 --out p2p"),
    ("data", "import"): (
        "bczoo data import owamcap recordings my_game",
        "bczoo data import video clips my_game --fit letterbox",
    ),
    ("data", "export"): ("bczoo data export lerobot my_game my_dataset",),
    ("data", "formats"): ("bczoo data formats",),
    ("data", "label"): (
        "bczoo data label runs/idm_doom my_videos --out labelled",
        "bczoo data label runs/idm_doom my_videos --out labelled --calibrate held_out",
    ),
    ("data", "idm-check"): ("bczoo data idm-check labelled",),
    ("tokenize",): ("bczoo tokenize runs/vqvae_small my_game",),
    ("doctor",): ("bczoo doctor", "bczoo doctor --json true"),
    ("completion",): (
        'eval "$(bczoo completion bash)"',
        "bczoo completion fish > ~/.config/fish/completions/bczoo.fish",
    ),
}

GROUPS = {  # of the commands, in the order in which a user meets them
    "train": ("fit", "validate", "test", "predict"),
    "play": ("play", "dream", "serve", "client-test", "bench"),
    "data": ("record", "data", "tokenize"),
    "measure": ("compare", "plot", "scaling", "evaluate", "causality", "attention", "gap", "study"),
    "share": ("export", "push", "pull", "convert", "zoo"),
    "this machine": ("doctor", "completion", "help"),
}

RARE = {"revision", "dtype", "token", "watch_port", "video_seconds", "top_p", "patience_s", "warm_up", "linear_bias"}
"""Options that the first page leaves to the last lines that have room."""
