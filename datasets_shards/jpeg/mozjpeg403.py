"""MozJPEG 4.0.3, the shared library that the package jpeglib carries, called through its own C interface.

It writes what libvips can't: 4:2:2, and progressive files with 16-bit quantization tables. jpeglib's Python interface
would do for the second, but it has no way to leave the progressive scan search, and trellis quantization gives other
coefficients there; so this module makes the calls that cjpeg makes. It takes nothing but the library file from jpeglib.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata, util
from pathlib import Path

import numpy as np

from datasets_shards.jpeg.settings import SAMPLING_FACTORS, JpegSettings

MAX_SIDE = 65500
"""libjpeg's JPEG_MAX_DIMENSION, pixels."""

_JPEG_LIB_VERSION = 70  # of the interface that jpeglib compiled MozJPEG with
_STRUCT_BYTES = 568
_JCS_RGB = 2
# MozJPEG's numbers of its own parameters, J_BOOLEAN_PARAM and J_INT_PARAM.
_TRELLIS_QUANT = 0xC5122033
_OVERSHOOT_DERINGING = 0x3F4BBBF9
_BASE_QUANT_TBL_IDX = 0x44492AB1


class _ErrorManager(ctypes.Structure):
    """The head of `jpeg_error_mgr`; the rest is left to the library."""

    _fields_ = (
        ("error_exit", ctypes.c_void_p),
        ("emit_message", ctypes.c_void_p),
        ("output_message", ctypes.c_void_p),
        ("format_message", ctypes.c_void_p),
        ("rest", ctypes.c_char * 512),
    )


class _Component(ctypes.Structure):
    """The head of `jpeg_component_info`."""

    _fields_ = (
        ("component_id", ctypes.c_int),
        ("component_index", ctypes.c_int),
        ("h_samp_factor", ctypes.c_int),
        ("v_samp_factor", ctypes.c_int),
    )


class _Compress(ctypes.Structure):
    """`jpeg_compress_struct` of JPEG_LIB_VERSION 70, by name up to the last member that is needed here."""

    _fields_ = (
        ("err", ctypes.c_void_p),
        ("mem", ctypes.c_void_p),
        ("progress", ctypes.c_void_p),
        ("client_data", ctypes.c_void_p),
        ("is_decompressor", ctypes.c_int),
        ("global_state", ctypes.c_int),
        ("dest", ctypes.c_void_p),
        ("image_width", ctypes.c_uint),
        ("image_height", ctypes.c_uint),
        ("input_components", ctypes.c_int),
        ("in_color_space", ctypes.c_int),
        ("input_gamma", ctypes.c_double),
        ("scale", ctypes.c_uint * 2),
        ("jpeg_size", ctypes.c_uint * 2),
        ("data_precision", ctypes.c_int),
        ("num_components", ctypes.c_int),
        ("jpeg_color_space", ctypes.c_int),
        ("comp_info", ctypes.POINTER(_Component)),
        ("quant_tbl_ptrs", ctypes.c_void_p * 4),
        ("q_scale_factor", ctypes.c_int * 4),
        ("huff_tbl_ptrs", ctypes.c_void_p * 8),
        ("arith", ctypes.c_ubyte * 48),
        ("num_scans", ctypes.c_int),
        ("scan_info", ctypes.c_void_p),
        ("rest", ctypes.c_char * 1024),  # more than there is, so that no other layout could write beyond it
    )


def check_crop(crop: np.ndarray) -> None:
    """Raise ValueError for anything but RGB uint8 [H, W, 3] with sides of 1 to 65500 pixels."""
    if crop.dtype != np.uint8 or crop.ndim != 3 or crop.shape[2] != 3 or not crop.size:
        raise ValueError(f"a crop is RGB uint8 [H, W, 3], not {crop.dtype} {list(crop.shape)}")
    if max(crop.shape) > MAX_SIDE:
        raise ValueError(f"a crop of {crop.shape[1]}x{crop.shape[0]} pixels: JPEG ends at {MAX_SIDE}")


def encode(crop: np.ndarray, quality: int, settings: JpegSettings) -> bytes:
    """Compress RGB uint8 [H, W, 3] as `cjpeg -quality Q` with the settings' flags.

    Raises:
        OSError: the library can't be loaded.
    """
    check_crop(crop)  # the library would read beyond it
    height, width = crop.shape[:2]
    pixels = np.ascontiguousarray(crop)
    first = pixels.ctypes.data
    rows = (ctypes.c_void_p * height)(*range(first, first + height * width * 3, width * 3))
    library = load()
    with _compressor(library) as info:
        at = ctypes.byref(info)
        buffer, size = ctypes.c_void_p(), ctypes.c_ulong()
        library.jpeg_mem_dest(at, ctypes.byref(buffer), ctypes.byref(size))
        try:
            info.image_width, info.image_height = width, height
            info.input_components, info.in_color_space = 3, _JCS_RGB
            library.jpeg_set_defaults(at)
            library.jpeg_c_set_bool_param(at, _TRELLIS_QUANT, settings.trellis)
            library.jpeg_c_set_bool_param(at, _OVERSHOOT_DERINGING, settings.deringing)
            library.jpeg_c_set_int_param(at, _BASE_QUANT_TBL_IDX, settings.quant_table)
            library.jpeg_set_quality(at, quality, settings.mode == "baseline")
            luma = info.comp_info[0]
            luma.h_samp_factor, luma.v_samp_factor = SAMPLING_FACTORS[settings.subsampling_at(quality)]
            if settings.mode == "baseline":  # the defaults are those of a progressive file
                info.num_scans, info.scan_info = 0, None
            library.jpeg_start_compress(at, True)
            library.jpeg_write_scanlines(at, rows, height)
            library.jpeg_finish_compress(at)
            return ctypes.string_at(buffer, size.value)
        finally:
            ctypes.CDLL(None).free(buffer)


def describe() -> str:
    """Name and version of the library, for the manifest."""
    return f"MozJPEG 4.0.3 (jpeglib {metadata.version('jpeglib')})"


@cache
def load() -> ctypes.CDLL:
    """The library, checked.

    Raises:
        OSError: jpeglib isn't installed, lacks the library, or has it with another interface.
    """
    found = util.find_spec("jpeglib")
    if found is None or not found.submodule_search_locations:
        raise OSError("jpeglib isn't installed")
    files = sorted(Path(found.submodule_search_locations[0], "cjpeglib").glob("cjpeglib_mozjpeg403.*"))
    if not files:
        raise OSError(f"jpeglib {metadata.version('jpeglib')} holds no MozJPEG 4.0.3")
    library = ctypes.CDLL(str(files[0]))
    library.jpeg_std_error.restype = ctypes.c_void_p
    library.jpeg_CreateCompress.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    for function in ("jpeg_c_set_bool_param", "jpeg_c_set_int_param"):
        getattr(library, function).argtypes = (ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
    with _compressor(library):
        return library


@contextmanager
def _compressor(library: ctypes.CDLL) -> Iterator[_Compress]:
    """A new compressor, freed afterwards. Raises OSError where the library's structures are other than these."""
    errors, info = _ErrorManager(), _Compress()
    info.err = library.jpeg_std_error(ctypes.byref(errors))
    messages: list[str] = []

    # The library's error handler ends the process. Creation can go on after an error (the two checks that can fail come
    # before anything else), so there and only there another one takes its place.
    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def note(at: int) -> None:
        text = ctypes.create_string_buffer(200)
        ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p)(errors.format_message)(at, text)
        messages.append(text.value.decode(errors="replace"))

    exit_process = errors.error_exit
    errors.error_exit = ctypes.cast(note, ctypes.c_void_p).value
    library.jpeg_CreateCompress(ctypes.byref(info), _JPEG_LIB_VERSION, _STRUCT_BYTES)
    errors.error_exit = exit_process
    try:
        if messages:
            raise OSError(f"jpeglib's MozJPEG has another interface: {messages[0]}")
        yield info
    finally:
        library.jpeg_destroy_compress(ctypes.byref(info))
