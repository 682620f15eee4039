"""`pack`: crops into shards, every quality in one pass."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets_shards.commands.arguments import selection_from
from datasets_shards.commands.faces import detect, face_settings
from datasets_shards.commands.pack_arguments import SIZE
from datasets_shards.commands.pack_arguments import add_arguments as add_arguments  # the command line asks for it here
from datasets_shards.errors import InputError
from datasets_shards.jpeg.settings import JpegSettings
from datasets_shards.schema import METHODS, Quality, label_of, one_class_warning, open_shard_set, quality_name
from datasets_shards.sources import Source, Video, describe_skipped, open_source

if TYPE_CHECKING:  # what pulls in heavy packages is imported where it is used, for --help must be quick
    from datasets_shards.faces.table import FaceTable
    from datasets_shards.shards.ledger import Ledger
    from datasets_shards.shards.request import PackRequest
    from datasets_shards.splits import SplitPlan

DETECTION = ("upsample", "reduce", "min_face")


def run(args: Any) -> None:
    """Cut the face crops out of the videos and pack them into shards, all qualities in one pass."""
    from datasets_shards.jpeg.mozjpeg import require_encoder
    from datasets_shards.shards.pack import begin_sets, finish_sets
    from datasets_shards.shards.request import find_missing
    from datasets_shards.shards.root import Task, locked_root

    task = _task(args)
    jpeg = JpegSettings(encoder=args.encoder, **vars(args.jpeg))
    if any(quality != "raw" for quality in args.qualities):
        require_encoder(jpeg)
    source = open_source(args.source, selection_from(args))
    for line in describe_skipped(source):
        print(line)
    refuse_cutting(args, source)
    splits = choose_splits(args, source)
    if args.masks:
        splits = _with_masks(splits)
    with locked_root(args.out, task) as folder:
        faces = faces_for_pack(args, source.videos, task is not None or args.merge)
        request = plan_request(args, splits, faces, jpeg)
        missing = find_missing(args.out, request, args.qualities)
        for quality in dict.fromkeys(args.qualities):
            if quality not in missing:
                print(f"already packed: {args.out / quality_name(quality)}")
        ledgers = begin_sets(args.out, request, missing)
        if missing and not args.merge:
            pack(args, folder, request, ledgers, task or Task())
        if task is not None:
            return
        finish_sets(request, ledgers, args.num_tasks)
    describe_pack(args.out, request, args.qualities)


def refuse_cutting(args: Any, source: Source) -> None:
    """Raise InputError for flags that say how crops are cut, where a source's own are taken as they are."""
    if any(video.cropped for video in source.videos):
        given = [name for name in ("margin", "align", *DETECTION) if args[name] is not None]
        if given:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise InputError(f"{flags}: the crops of {source.root} are taken as they are; leave that away")


def _task(args: Any) -> Any:
    """The task of `--task-id`, or None for a call that packs everything or merges."""
    from datasets_shards.shards.root import Task

    if args.merge:
        if args.task_id is not None:
            raise InputError(f"--task-id {args.task_id}: packs, and --merge only puts together; give one of them")
        return None
    if args.task_id is None:
        if args.num_tasks > 1:
            raise InputError(f"--num-tasks {args.num_tasks}: which of them is this? Give --task-id, from 0")
        return None
    if args.task_id >= args.num_tasks:
        raise InputError(f"--task-id {args.task_id}: of --num-tasks {args.num_tasks} the last is {args.num_tasks - 1}")
    return Task(args.task_id, args.num_tasks)


def pack(args: Any, folder: Path, request: "PackRequest", ledgers: dict[Quality, "Ledger"], task: Any) -> None:
    """Pack the shards that are this task's and that aren't there, with a bar of crops/s, bytes and time left."""
    from tqdm import tqdm

    from datasets_shards.shards.pack import pack_shards, plan_work

    todo = plan_work(request, ledgers, task)
    mine = request.layout.shards[task.number :: task.count]
    samples = request.layout.samples_by_shard
    if len(todo) < len(mine):
        print(f"continuing: {len(mine) - len(todo)} of {len(mine)} shards are packed")
    if task.count > 1:
        print(f"task {task.number} of {task.count}: {len(mine)} of {len(request.layout.shards)} shards", flush=True)
    total = sum(samples[work.shard.name] for work in todo)
    written = 0
    with tqdm(total=total, desc="packing", unit="crop", smoothing=0.05, disable=None) as bar:

        def report(crops: int, size: int, notes: list[str]) -> None:
            nonlocal written
            for note in notes:
                tqdm.write(note)
            written += size
            bar.set_postfix_str(f"{written / 1e6:.1f} MB", refresh=False)
            bar.update(crops)

        pack_shards(request, ledgers, todo, folder, args.workers, report)


def choose_splits(args: Any, source: Source) -> "SplitPlan":
    """The splits of `--splits`, else of the source's own folder or JSON file, else drawn.

    Raises:
        InputError: a leak, and whatever `plan_splits` refuses; no video is in any split.
    """
    from datasets_shards.splits import describe_people, plan_splits

    folder = args.splits
    own = args.source / "splits"
    if folder is not None:
        if not folder.is_dir():
            raise InputError(f"--splits {folder}: no such folder")
    elif own.is_dir():
        folder = own
        print(f"splits: from {own}")
    elif source.splits is not None:
        print("splits: from the source's JSON file")
    splits = plan_splits(source.videos, folder, args.seed, source.splits)
    if splits.origin["origin"] == "drawn":
        for line in describe_people(splits, args.seed):
            print(line)
    if splits.skipped:
        print(f"skipped: {len(splits.skipped)} videos that are in no file of {folder}")
    if not any(splits.videos.values()):
        raise InputError(f"--splits {folder}: none of the {len(source.videos)} videos is in its files")
    return splits


def faces_for_pack(args: Any, videos: list[Video], shared: bool) -> "FaceTable":
    """The table of `--faces`, else the one that the root keeps, else a new one, which the root then keeps.

    Raises:
        InputError: the table is about other videos or was made with other settings than the flags say, or there is none
            and several tasks would make it at once.
    """
    from datasets_shards.faces.table import FaceTable

    kept = args.out / "faces.parquet"
    path = args.faces or kept
    if args.faces is None and not kept.exists():
        if shared:
            raise InputError(
                f"{kept}: no such table of faces, which all tasks share; make it first: python -m datasets_shards "
                f"faces --source {args.source} --out {kept}"
            )
        return detect(videos, face_settings(args), kept, args.workers)
    faces = FaceTable.load(path)
    asked, made = face_settings(args, faces.settings), faces.settings
    if asked.choice != made.choice:
        raise InputError(
            f"{asked.choice.flag()}: the faces of {path} were found with {made.choice.flag()}; make another table, or "
            "leave that away"
        )
    for name in DETECTION:
        if getattr(asked, name) != getattr(made, name):
            flag = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{flag} {getattr(asked, name)}: the faces of {path} were found with {getattr(made, name)}; make "
                f"another table, or leave {flag} away"
            )
    print(f"faces: from {path}")
    return faces.of_videos(videos)


def plan_request(args: Any, splits: "SplitPlan", faces: "FaceTable", jpeg: JpegSettings) -> "PackRequest":
    """Decide the crops' size and every shard.

    Raises:
        InputError: no sample at all, or a `--size` that a source's own crops don't have.
    """
    from datasets_shards.crops.align import AS_THEY_ARE, CropSettings
    from datasets_shards.demo import RECORD_NAME as DEMO_RECORD
    from datasets_shards.faces.rows import OTHER_SIZE
    from datasets_shards.frames.masks import describe_masks
    from datasets_shards.shards.layout import plan_layout
    from datasets_shards.shards.request import PackRequest

    cropped = any(video.cropped for videos in splits.videos.values() for video in videos)
    size = args.size or SIZE
    if cropped:
        faces, size = faces.of_one_size(args.size)
        if others := faces.status_counts().get(OTHER_SIZE):
            print(f"skipped {others} crops that aren't {size}x{size} pixels as the others")
    defaults = CropSettings()
    align = AS_THEY_ARE if cropped else args.align or defaults.align
    crop = CropSettings(size, args.margin or defaults.margin, align, args.dct_scale)
    layout = plan_layout(splits.videos, faces, crop.image_size, args.shard_samples)
    if not layout.shards:
        raise InputError(f"--source {args.source}: no usable face in any video of the splits")
    masks = describe_masks(layout.videos) if args.masks else None
    return PackRequest(faces, splits, layout, crop, jpeg, masks, made_up=(args.source / DEMO_RECORD).is_file())


def _with_masks(splits: "SplitPlan") -> "SplitPlan":
    """Say how many videos have masks, and leave out masks that can't be read."""
    from datasets_shards.frames.masks import check_mask

    found = 0
    broken: dict[Path | None, str] = {}
    videos: dict[str, list[Video]] = {}
    for split, placed in splits.videos.items():
        videos[split] = []
        for video in placed:
            if problem := check_mask(video):
                broken[video.mask] = problem
                video = replace(video, mask=None)
            found += video.mask is not None
            videos[split].append(video)
    for path, problem in broken.items():
        print(f"skipped mask {path}: {problem}")
    print(f"masks: of {found} videos")
    if not found:
        raise InputError("--masks: the source has none (FF++'s are <method>/masks/videos/*.mp4)")
    return replace(splits, videos=videos)


def describe_pack(root: Path, request: "PackRequest", qualities: list[Quality]) -> None:
    """Print what the root now holds."""
    import pyarrow.compute as pc

    drawn = request.splits.origin["origin"] == "drawn"
    why_empty = ", for there are too few people for three splits that share none" if drawn else ""
    for split, counts in request.layout.counts.items():
        methods = ", ".join(f"{counts[method]} {method}" for method in METHODS if method in counts)
        print(f"{split}: {sum(counts.values())} samples ({methods})" if counts else f"{split}: empty{why_empty}")
        if warning := one_class_warning(split, map(label_of, counts)):
            print(f"warning: {warning}")
    for quality in dict.fromkeys(qualities):
        opened = open_shard_set(root, quality)
        total = pc.sum(opened.index["size"]).as_py()
        mean = total / opened.index.num_rows
        tars = len(opened.manifest.tars)
        print(f"{opened.folder}: {opened.index.num_rows} images, {total} bytes ({mean:.0f} each), {tars} tars")
