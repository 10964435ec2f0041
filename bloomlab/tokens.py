"""Text <-> token ids <-> printable tokens, with BLOOM's byte-level BPE."""

import copy
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from huggingface_hub import snapshot_download
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import BatchEncoding, PreTrainedTokenizerFast

from bloomlab.errors import BloomlabError, InputError, TokenizerError, UnknownArgumentError
from bloomlab.printable import checked_ids, printable_tokens, token_labels

__all__ = ["BloomTokenizer", "BloomTokenizerFast", "printable_tokens", "token_labels"]

_WORDS = r" ?[^(\s|[.,!?…。，、।۔،])]+"  # as in bigscience/bloom; '(', ')' and '|' are in the class
_HUB_OPTIONS = ("revision", "cache_dir", "token", "force_download", "local_files_only")
_HUB_FILES = ["*token*.json", "*vocab.json", "*merges.txt", "*chat_template*"]
_CALL_OPTIONS = list(inspect.signature(PreTrainedTokenizerFast.__call__).parameters)[1:-1]
_ENCODE_OPTIONS = {
    *inspect.signature(PreTrainedTokenizerFast._encode_plus).parameters,
    "sanitize_control_tokens",  # the base class's apply_chat_template passes it
}

DEMO = Path(__file__).parent / "demo" / "checkpoint"  # the packaged one
PHASES = Path(__file__).parent / "demo" / "phases"  # steps of a smaller one's training


class BloomTokenizer(PreTrainedTokenizerFast):
    """BLOOM's tokenizer, with the arguments it had in transformers 4.56.2; adds no bos or eos.

    Transformers 5 dropped this class and ignores `add_prefix_space`; here it works, and once per
    text: `add_prefix_space=True` gives the ids of `" " + text` (of `text` if it starts with a space
    or a special token), also in a plain AutoTokenizer on the saved folder. (4.56.2 put a space
    before every piece between punctuation marks too; a tokenizer.json it wrote so is kept as is.)
    `is_split_into_words=True` then reads every word as " word". `add_prefix_space=None` leaves the
    pipeline as tokenizer_file has it.

    Raises:
        TokenizerError: Files missing or unreadable; words without `add_prefix_space`.
        InputError: Text that is no string; ids that are negative or not integers.
        UnknownArgumentError: A call with an argument no tokenizer takes.
    """

    vocab_files_names: ClassVar = {
        "vocab_file": "vocab.json",
        "merges_file": "merges.txt",
        "tokenizer_file": "tokenizer.json",
    }
    padding_side = "left"

    def __init__(
        self,
        vocab_file: str | Path | None = None,
        merges_file: str | Path | None = None,
        tokenizer_file: str | Path | None = None,
        unk_token: str | AddedToken | None = "<unk>",
        bos_token: str | AddedToken | None = "<s>",
        eos_token: str | AddedToken | None = "</s>",
        pad_token: str | AddedToken | None = "<pad>",
        add_prefix_space: bool | None = False,
        clean_up_tokenization_spaces: bool = False,
        *,
        tokenizer_object: Tokenizer | None = None,
        **options: Any,  # the base class's own, and whatever a tokenizer_config.json holds
    ) -> None:
        if tokenizer_object is not None:
            self._tokenizer = copy.deepcopy(tokenizer_object)
        elif tokenizer_file is not None:
            self._tokenizer = _read(Tokenizer.from_file, tokenizer_file)
        elif vocab_file is not None and merges_file is not None:
            self._tokenizer = bloom_pipeline(_read(BPE.from_file, vocab_file, merges_file))
        else:
            raise TokenizerError(
                f"got vocab_file={vocab_file!r} and merges_file={merges_file!r}. Pass both, or "
                "tokenizer_file, or use BloomTokenizer.from_pretrained."
            )
        for folder_fact in ("is_local", "local_files_only"):  # else the base class saves them
            options.pop(folder_fact, None)
        options.setdefault("model_input_names", ["input_ids", "attention_mask"])
        super().__init__(
            unk_token=unk_token,
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            add_prefix_space=_set_prefix_space(self._tokenizer, add_prefix_space),
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            **options,
        )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *init_inputs: Any, **options: Any
    ) -> "BloomTokenizer":
        """A tokenizer from a folder or tokenizer.json (read offline), or from a hub id.

        Raises:
            TokenizerError: No such folder or hub id, missing files, or files that cannot be read.
        """
        name = str(pretrained_model_name_or_path)
        packaged = {"demo": DEMO, "demo-phases": next(iter(sorted(PHASES.glob("step*"))), PHASES)}
        path = packaged.get(name, Path(name).expanduser())
        asked = {key: options.pop(key) for key in _HUB_OPTIONS if key in options}
        if not path.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
            raise TokenizerError(
                f"no folder {name!r} to load a tokenizer from. Check the path (we are in "
                f"{Path.cwd()}), or give a hub id such as 'bigscience/bloom-560m'."
            )
        try:
            if not path.exists():  # the base class would retry each file for minutes when offline
                path = Path(snapshot_download(name, allow_patterns=_HUB_FILES, **asked))
            tokenizer = super().from_pretrained(
                path, *init_inputs, local_files_only=True, **options
            )
        except BloomlabError:
            raise
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            _explain(path / (options.get("subfolder") or ""), error)
        tokenizer.name_or_path = name
        return tokenizer

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **options: Any) -> dict:
        """The constructor's arguments; the base class would take tokenizer.json apart.

        Raises:
            FileNotFoundError: No tokenizer.json, nor vocab.json and merges.txt.
        """
        has_bpe = options.get("vocab_file") and options.get("merges_file")
        if not (has_bpe or options.get("tokenizer_file") or options.get("tokenizer_object")):
            raise FileNotFoundError("found no tokenizer.json, nor vocab.json and merges.txt")
        return {"add_prefix_space": None, **options}

    @classmethod
    def _patch_mistral_regex(cls, tokenizer: Tokenizer, *_: Any, **__: Any) -> Tokenizer:
        return tokenizer  # the base class asks the hub whether a big vocabulary is a Mistral's

    def save_vocabulary(  # pyright: ignore[reportIncompatibleMethodOverride]  # base: one file
        self, save_directory: str | Path, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """The paths of the vocab.json and merges.txt written to `save_directory`.

        Raises:
            TokenizerError: `save_directory` is no folder.
        """
        if not Path(save_directory).is_dir():
            raise TokenizerError(
                f"{str(save_directory)!r} is no folder to save in. Create it first."
            )
        return tuple(self._tokenizer.model.save(str(save_directory), filename_prefix))

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or the list of tokens of ids; None for an id that no token has.

        Raises:
            InputError: Ids that are negative or not integers.
        """
        if getattr(ids, "ndim", None) == 0 or isinstance(ids, (int, float)):
            return super().convert_ids_to_tokens(checked_ids([ids])[0])
        return super().convert_ids_to_tokens(checked_ids(ids), skip_special_tokens)

    def _decode(self, token_ids: Any, *args: Any, **options: Any) -> str:
        ids = token_ids["input_ids"] if isinstance(token_ids, Mapping) else token_ids
        ids = [ids] if isinstance(ids, (int, float)) else ids
        return super()._decode(checked_ids(ids), *args, **options)

    def _encode_plus(
        self, text: Any, text_pair: Any = None, *args: Any, **options: Any
    ) -> BatchEncoding:
        for name in options.keys() - _ENCODE_OPTIONS:
            raise UnknownArgumentError("the tokenizer", name, _CALL_OPTIONS)
        _check_text(text)
        if text_pair is not None:
            _check_text(text_pair)
        if isinstance(text, list) and not text and not options.get("is_split_into_words"):
            raise InputError("an empty list of texts. Give a text, or a list of one or more.")
        if options.get("is_split_into_words") and not self.add_prefix_space:
            raise TokenizerError(
                "is_split_into_words=True needs a tokenizer that starts every word with a space, "
                "and this one has add_prefix_space=False: the words would be glued together. Load "
                "it with BloomTokenizer.from_pretrained(path, add_prefix_space=True)."
            )
        return super()._encode_plus(text, text_pair, *args, **options)


BloomTokenizerFast = BloomTokenizer


def _read(reader: Callable[..., Any], *files: str | Path) -> Any:
    try:
        return reader(*map(str, files))
    except Exception as error:  # tokenizers raises nothing narrower
        raise TokenizerError(
            f"{' and '.join(map(str, files))} cannot be read as a tokenizer: {error}. Expected the "
            "files of a byte-level BPE tokenizer; fetch or save them again."
        ) from error


def _explain(path: Path, error: Exception) -> NoReturn:
    if not path.exists():
        raise TokenizerError(
            f"no tokenizer for {str(path)!r}: here is no such folder, and as a hub id: {error}. "
            "Check the spelling and the network, or download the model and give its folder."
        ) from error
    for file in sorted(path.glob("*token*.json")) if path.is_dir() else [path]:
        try:
            json.loads(file.read_bytes())
        except ValueError as broken:
            raise TokenizerError(
                f"{file} is no JSON: {broken}. It is cut off or a Git LFS pointer; fetch it again."
            ) from error
    held = sorted(file.name for file in path.iterdir())[:9] if path.is_dir() else [path.name]
    raise TokenizerError(
        f"cannot load a tokenizer from {path}: {error}. Got the files: {', '.join(held)}. Expected "
        "tokenizer.json, or vocab.json and merges.txt, as save_pretrained writes them or the "
        "model's hub page has them, and arguments that BloomTokenizer takes."
    ) from error


def bloom_pipeline(model: BPE) -> Tokenizer:
    backend = Tokenizer(model)
    words = pre_tokenizers.Split(Regex(_WORDS), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
    backend.post_processor = processors.ByteLevel(trim_offsets=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _set_prefix_space(backend: Tokenizer, wanted: bool | None) -> bool:
    """Whether `backend` now starts a text with a space; None changes nothing."""
    pipeline = backend.pre_tokenizer
    parts: list[Any] = [] if pipeline is None else [pipeline]
    if isinstance(pipeline, pre_tokenizers.Sequence):
        parts = list(pipeline)  # pyright: ignore[reportArgumentType]  # the stub lacks iteration
    has = any(
        getattr(part, "add_prefix_space", False)
        or getattr(part, "prepend_scheme", "never") != "never"
        for part in parts
    )
    if wanted is None or wanted == has:
        return has
    parts = [part for part in parts if not isinstance(part, pre_tokenizers.Metaspace)]
    for part in parts:
        if isinstance(part, pre_tokenizers.ByteLevel):
            part.add_prefix_space = False
    if wanted:
        # ByteLevel(add_prefix_space=True) after a Split would put a space before every piece.
        space = pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="first", split=False)
        parts.insert(0, space)
    backend.pre_tokenizer = pre_tokenizers.Sequence(parts)
    return wanted


def _check_text(text: object) -> None:
    if isinstance(text, (list, tuple)):
        for part in text:
            _check_text(part)
    elif not isinstance(text, str):
        raise InputError(
            f"text must be a string or a list of strings, got {type(text).__name__} {text!r:.60}. "
            "Convert it with str() or .tolist()."
        )
    else:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"text is not valid Unicode: {error}. Read the file as UTF-8, or clean the text "
                "with text.encode('utf-8', 'replace').decode()."
            ) from error
