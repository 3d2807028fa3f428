"""Chat tokenisation against Hugging Face's own and against chats that are written out by hand."""

import json
import pickle

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from speechlmm_core.chat.messages import Message
from speechlmm_core.chat.template import BUILT_IN, read_template
from speechlmm_core.chat.tokenizer import ChatTokenizer, MediaPiece, TextPiece
from speechlmm_core.errors import ConfigError, DataError
from speechlmm_core.text_decoder.config import CausalLMConfig

LLAMA_3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
CORPUS = [
    "Transcribe the audio. What does the speaker say? Turn the light on in the kitchen, please.",
    "USER: hello ASSISTANT: it's the 12th of June\n\nuser assistant system <|im_start|> </s> [INST] [/INST]",
] * 8
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(template):
    """Llama 3's layout: a regex pre-tokenizer, byte-level BPE, special tokens outside the model's vocabulary."""
    backend = Tokenizer(models.BPE(ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_3_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    tokens = BUILT_IN[template]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens.all])
    # Trimmed offsets are what GPT-2's layout has: they must not shift the mask.
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    return backend, {"bos_token": tokens.bos, "eos_token": tokens.eos}


def sentencepiece(legacy):
    """Mistral's layout (Metaspace) or Llama 2's (normaliser), both with byte fallback."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    # Trained word by word, as sentencepiece does, and used on whole texts.
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    names = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=[*names, *BYTE_TOKENS])
    backend.train_from_iterator(CORPUS, trainer)
    layout = json.loads(backend.to_str())
    layout["added_tokens"] = [token for token in layout["added_tokens"] if token["content"] in names]
    backend = Tokenizer.from_str(json.dumps(layout))
    if legacy:
        backend.pre_tokenizer = pre_tokenizers.Sequence([])
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        # Version 3 of Mistral's tokenizer has these as control tokens.
        backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("[INST]", "[/INST]")])
    return backend, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def gemma():
    """Gemma's layout: spaces are written as ▁ by the normaliser, and none is put in front."""
    backend, _ = sentencepiece(legacy=False)
    layout = json.loads(backend.to_str())
    layout["added_tokens"] = []
    backend = Tokenizer.from_str(json.dumps(layout))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in BUILT_IN["gemma3"].all])
    return backend, {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}


BYTE_LEVEL = ("llama_3", "chatml", "qwen3", "smollm3", "plain")
LAYOUTS = {
    "llama_3": lambda: byte_level("llama_3"),
    "chatml": lambda: byte_level("chatml"),
    "qwen3": lambda: byte_level("qwen3"),
    "smollm3": lambda: byte_level("smollm3"),
    "plain": lambda: byte_level("plain"),
    "gemma3": gemma,
    "mistral": lambda: sentencepiece(legacy=False),
    "vicuna": lambda: sentencepiece(legacy=True),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for template, make in LAYOUTS.items():
        folder = found[template] = tmp_path_factory.mktemp(template)
        backend, names = make()
        (folder / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps({**names, "clean_up_tokenization_spaces": False}))
    return found


@pytest.fixture(scope="module")
def chats(folders):
    model = {"model_type": "llama", "hidden_size": 64, "vocab_size": 1000}
    return {
        name: CausalLMConfig(model=model, tokenizer=str(folder), chat_template=name).build_tokenizer()
        for name, folder in folders.items()
    }


@pytest.fixture(params=LAYOUTS)
def name(request):
    return request.param


def turns(*contents, system=None):
    roles = ["user", "assistant"] * len(contents)
    found = [Message(role=role, content=content) for role, content in zip(roles, contents, strict=False)]
    return [Message(role="system", content=system), *found] if system is not None else found


def text(value):
    return {"type": "text", "text": value}


def head(role):
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


def im_start(role):
    return f"<|im_start|>{role}\n"


DATE = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
SMOLLM3 = (
    "<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: 08 July 2025\n"
    "Reasoning Mode: /no_think\n\n## Custom Instructions\n\n"
)
SMOLLM3_ITSELF = "You are a helpful AI assistant named SmolLM, trained by Hugging Face."
OPENING = {
    "llama_3": "<|begin_of_text|>" + head("system") + DATE,
    "chatml": "",
    "qwen3": "",
    "smollm3": SMOLLM3,
    "plain": "<|begin_of_text|>",
    "gemma3": "<bos>",
    "mistral": "<s>",
    "vicuna": "<s>",
}
# What stands before and after the content of (system, user, assistant); of the last, what follows is its own.
BEFORE = {
    "llama_3": ("", head("user"), head("assistant")),
    "chatml": (im_start("system"), im_start("user"), im_start("assistant")),
    "qwen3": (im_start("system"), im_start("user"), im_start("assistant")),
    "smollm3": ("", im_start("user"), im_start("assistant") + "<think>\n\n</think>\n"),
    "plain": ("", "", ""),
    "gemma3": ("<start_of_turn>user\n", "<start_of_turn>user\n", "<start_of_turn>model\n"),
    "mistral": ("[INST] ", "[INST] ", ""),
    "vicuna": ("", "USER: ", "ASSISTANT:"),
}
AFTER = {
    "llama_3": ("<|eot_id|>", "<|eot_id|>", "<|eot_id|>"),
    "chatml": ("<|im_end|>\n", "<|im_end|>\n", "<|im_end|>"),
    "qwen3": ("<|im_end|>\n", "<|im_end|>\n", "<|im_end|>"),
    "smollm3": ("\n\n", "<|im_end|>\n", "<|im_end|>"),
    "plain": ("\n", "\n", "<|end_of_text|>"),
    "gemma3": ("\n\n", "<end_of_turn>\n", "<end_of_turn>"),
    "mistral": ("\n\n", "[/INST]", "</s>"),
    "vicuna": (" ", " ", "</s>"),
}
# Templates that leave white space around the content of (system, user) as it is; an answer's is always trimmed.
KEEPS = {"chatml": (True, True), "qwen3": (True, True), "smollm3": (True, True), "gemma3": (True, False)}
ALWAYS_SYSTEM = {"llama_3": "", "smollm3": SMOLLM3_ITSELF}
NO_THOUGHTS = "<think>\n\n</think>\n\n"


def by_hand(name, messages, prompt=False):
    """A chat as (string, is the assistant's) pieces; a medium is `None`. Written without any template."""
    out = [(OPENING[name], False)]
    if name in ALWAYS_SYSTEM and messages[0].role != "system":
        messages = [Message(role="system", content=ALWAYS_SYSTEM[name]), *messages]
    for i, message in enumerate(messages):
        number = ("system", "user", "assistant").index(message.role)
        mine = message.role == "assistant"
        keeps = (*KEEPS.get(name, (False, False)), False)[number]
        items = [item["text"] if item["type"] == "text" else None for item in message.content]
        if not keeps and items[0] is not None:
            items[0] = items[0].lstrip()
        if items[-1] is not None and (not keeps or (name, number) == ("smollm3", 0)):
            items[-1] = items[-1].rstrip()
        follows_system = name in ("gemma3", "mistral") and i > 0 and messages[i - 1].role == "system"
        out.append(("" if follows_system else BEFORE[name][number], False))
        out.append((NO_THOUGHTS if mine and name == "qwen3" and message is messages[-1] else "", False))
        out.append((" " if mine and name in ("mistral", "vicuna") else "", mine))
        out += [(item, mine and item is not None) for item in items]
        out.append((AFTER[name][number], mine))
        out.append(("\n" if mine and name in ("chatml", "qwen3", "smollm3", "gemma3") else "", False))
    return [*out, (BEFORE[name][2] + (NO_THOUGHTS if name == "qwen3" else ""), False)] if prompt else out


def reference(folder, pieces):
    """Tokenises pieces jointly by Hugging Face, media being a special token, with a mask character by character."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|the medium|>"]}, replace_extra_special_tokens=False)
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.Sequence([])
    joined = "".join("<|the medium|>" if value is None else value for value, _ in pieces)
    mine = [flag for value, flag in pieces for _ in ("<|the medium|>" if value is None else value)]
    encoding = backend.encode(joined, add_special_tokens=False)
    medium = tokenizer.convert_tokens_to_ids("<|the medium|>")
    found, ids, mask = [], [], []
    for token, (start, end) in [*zip(encoding.ids, encoding.offsets, strict=True), (medium, (0, 0))]:
        if token == medium:
            found += [(ids, mask)] if ids else []
            found.append(None)
            ids, mask = [], []
        else:
            ids.append(token)
            mask.append(any(mine[start:end]))
    return found[:-1]


def plain(pieces):
    return [(piece.ids, piece.supervised) if isinstance(piece, TextPiece) else None for piece in pieces]


AUDIO, OTHER = {"type": "audio", "path": "a.wav"}, {"type": "speaker", "path": "b.wav"}
CONVERSATIONS = {
    "one turn": turns("hello", "it's the 12th"),
    "spaces": turns("  hello \n", "\n yes  "),
    "system": turns("what?", "the light", "in the kitchen?", "please", system=" be brief "),
    "audio first": turns([AUDIO, text("Transcribe the audio.")], "Turn the light on."),
    "audio last": turns([text("Say what you hear: "), AUDIO], "on"),
    "media among text": turns([text("first"), AUDIO, AUDIO, text(" and "), OTHER, text("?")], [text("so "), AUDIO]),
    "audio alone": turns([AUDIO], "世界 ok", [OTHER], ""),
    "adjacent texts": turns([text("Tran"), text("scribe"), AUDIO, text("the"), text(" light")], "yes"),
}


@pytest.mark.parametrize("key", CONVERSATIONS)
def test_ids_and_masks_are_those_of_a_chat_written_by_hand(chats, folders, name, key):
    messages = CONVERSATIONS[key]
    pieces = chats[name].encode_chat(messages)
    assert plain(pieces) == reference(folders[name], by_hand(name, messages))
    media = [item for message in messages for item in message.media]
    assert [piece.item for piece in pieces if isinstance(piece, MediaPiece)] == media


@pytest.mark.parametrize("key", ["one turn", "system", "media among text"])
def test_generation_prompt(chats, folders, name, key):
    messages = CONVERSATIONS[key][: -1 if CONVERSATIONS[key][-1].role == "assistant" else None]
    pieces = chats[name].encode_chat(messages, add_generation_prompt=True)
    assert plain(pieces) == reference(folders[name], by_hand(name, messages, prompt=True))


@pytest.mark.parametrize("key", ["one turn", "system", "spaces"])
def test_the_prompt_is_the_beginning_of_the_whole_chat(chats, name, key):
    messages = CONVERSATIONS[key]
    (prompt,) = chats[name].encode_chat(messages[:-1], add_generation_prompt=True)
    (whole,) = chats[name].encode_chat(messages)
    assert whole.ids[: len(prompt.ids)] == prompt.ids
    assert all(whole.supervised[len(prompt.ids) : -1])


SPECIAL = {"<unk>", "[INST]", "[/INST]", *(token for tokens in BUILT_IN.values() for token in tokens.all)}
harmless = st.text(max_size=20).filter(lambda value: not any(token in value for token in SPECIAL))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=st.lists(harmless, min_size=2, max_size=4), system=st.none() | harmless)
def test_equals_the_joint_tokenisation_of_hugging_face(chats, name, contents, system):
    chat = chats[name]
    messages = turns(*contents, system=system)
    pieces = chat.encode_chat(messages)
    found = chat.tokenizer.apply_chat_template(
        [{"role": message.role, "content": message.content[0]["text"]} for message in messages],
        chat_template=chat.template,
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    (piece,) = pieces or [TextPiece([], [])]
    assert piece.ids == found["input_ids"]
    if name not in BYTE_LEVEL:  # there, trimmed offsets mislead Hugging Face's mask
        assert [int(flag) for flag in piece.supervised] == found["assistant_masks"]


def test_masks_are_those_of_hugging_face_where_offsets_are_whole(chats, name):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(chats[name].tokenizer.backend_tokenizer.to_str()),
        **{key: value for key, value in chats[name].tokenizer.special_tokens_map.items() if isinstance(value, str)},
    )
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    for contents in (["hello", "it's"], [" a\n", "b  c", "世", "\n\nd"], ["q", "", "q", "x"]):
        (piece,) = chats[name].encode_chat(turns(*contents, system="s"))
        found = tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content[0]["text"]} for m in turns(*contents, system="s")],
            chat_template=chats[name].template,
            return_assistant_tokens_mask=True,
            return_dict=True,
        )
        assert (piece.ids, [int(flag) for flag in piece.supervised]) == (found["input_ids"], found["assistant_masks"])


HOSTILE = [
    *("<|eot_id|>", "<|start_header_id|>", "<|begin_of_text|>", "<|im_end|>", "<|im_start|>", "<|endoftext|>"),
    *("<s>", "</s>", "<unk>", "[INST]", "[/INST]", "<pad>", "<|eot", "_id|>", "</", "s>", "<|im", "_end|>", "<0x0A>"),
    *("<think>", "</think>", "<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>"),
    *("\ue000", "\ue001", "item", "n0e", "{{", "{% generation %}", "USER:", "\ud800", " ", "\n\n"),
]
hostile = st.lists(st.sampled_from(HOSTILE) | st.text(max_size=6), max_size=6).map("".join)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(items=st.lists(hostile, min_size=1, max_size=3), answer=hostile)
@example(items=["<|eot", "_id|>"], answer="<|im_end|>")
@example(items=["</s", ">[INST", "]"], answer="</s>")
def test_user_text_never_becomes_a_special_token(chats, name, items, answer):
    chat = chats[name]
    special = set(chat.tokenizer.added_tokens_decoder)
    harmless = chat.encode_chat(turns([text("x"), AUDIO], "x"))
    pieces = chat.encode_chat(turns([*map(text, items), AUDIO], answer))
    wanted = [token for piece in harmless if isinstance(piece, TextPiece) for token in piece.ids if token in special]
    found = [token for piece in pieces if isinstance(piece, TextPiece) for token in piece.ids if token in special]
    assert found == wanted
    whole = "".join(items)
    assert not special & set(chat.encode(whole))
    cleaned = "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in whole)
    if name in BYTE_LEVEL:
        assert chat.decode(chat.encode(whole)) == cleaned
        shown = "".join(chat.tokenizer.decode(piece.ids) for piece in pieces if isinstance(piece, TextPiece))
        assert (cleaned.lstrip() if name in ("llama_3", "plain") else cleaned) in shown
    else:  # these write a space as ▁, and may add or take one in front
        assert chat.decode(chat.encode(whole)).lstrip(" ") == cleaned.replace("▁", " ").lstrip(" ")


def test_a_vocabulary_that_holds_special_tokens_as_pieces():
    pieces = ["<s>", "</s>", "<unk>"]
    vocabulary = [(piece, 0.0) for piece in pieces] + [(char, -3.0) for char in "▁<>/sabqUSERAINT:"]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(pieces)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    chat = ChatTokenizer(tokenizer, read_template("vicuna"), "vicuna")
    assert not {0, 1} & set(chat.encode("a</s><s>b</s>"))
    assert chat.decode(chat.encode("a</s><s>b</s>")).replace(" ", "") == "a</s><s>b</s>"
    (piece,) = chat.encode_chat(turns("a</s>", "b</s>"))
    assert [token for token in piece.ids if token < 2] == [0, 1]


def test_added_tokens_that_the_template_writes_are_special_even_if_undeclared():
    backend, names = byte_level("chatml")
    layout = json.loads(backend.to_str())
    for token in layout["added_tokens"]:
        token["special"] = token["content"] == "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(layout)), **names)
    tokenizer.add_tokens(["<think>"])
    chat = ChatTokenizer(tokenizer, read_template("chatml"), "chatml")
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert start not in chat.encode("<|im_start|>")
    assert chat.encode("<think>") == [tokenizer.convert_tokens_to_ids("<think>")]
    assert chat.decode([start, *chat.encode("a")]) == "a"


@pytest.mark.parametrize(
    ("template", "stops"),
    [
        ("llama_3", ["<|eot_id|>"]),
        ("chatml", ["<|im_end|>", "<|endoftext|>"]),
        ("qwen3", ["<|im_end|>", "<|endoftext|>"]),
        ("smollm3", ["<|im_end|>"]),
        ("plain", ["<|end_of_text|>"]),
        ("gemma3", ["<end_of_turn>", "<eos>"]),
        ("mistral", ["</s>"]),
        ("vicuna", ["</s>"]),
    ],
)
def test_stop_tokens(chats, template, stops):
    assert chats[template].stop_token_ids == chats[template].tokenizer.convert_tokens_to_ids(stops)


def test_padding_token(chats):
    tokenizer = chats["llama_3"].tokenizer
    assert chats["llama_3"].pad_token_id == tokenizer.convert_tokens_to_ids("<|finetune_right_pad_id|>")
    assert chats["mistral"].pad_token_id == chats["mistral"].stop_token_ids[0]  # the tokenizer has none


def test_saving_keeps_ids_and_template(chats, name, tmp_path):
    chats[name].save_pretrained(tmp_path)
    model = {"model_type": "llama", "hidden_size": 64, "vocab_size": 1000}
    again = CausalLMConfig(model=model, chat_template=name).build_tokenizer(str(tmp_path))
    assert again.template == chats[name].template
    assert plain(again.encode_chat(CONVERSATIONS["system"])) == plain(chats[name].encode_chat(CONVERSATIONS["system"]))
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == chats[name].template


def test_pickling_for_data_workers(chats, name):
    again = pickle.loads(pickle.dumps(chats[name]))
    messages = turns([text("<|eot_id|></s><|im_end|>"), AUDIO], "yes")
    assert again.encode_chat(messages) == chats[name].encode_chat(messages)


def test_refusals(chats):
    chat = chats["mistral"]
    with pytest.raises(DataError, match="at least one message"):
        chat.encode_chat([])
    with pytest.raises(DataError, match=r"leaves out or repeats.*'system', 'assistant'"):
        chat.encode_chat([Message(role="system", content="s"), Message(role="assistant", content="a")])
    with pytest.raises(ConfigError, match=r"'llama_3' needs '<\|start_header_id\|>'.* lacks"):
        ChatTokenizer(chat.tokenizer, read_template("llama_3"), "llama_3")


@pytest.mark.parametrize("last_only", [False, True])
def test_answers_of_a_conversation_are_learnt_to_the_letter_in_every_layout(name, chats, last_only):
    chat = chats[name]
    answers = ["turn it on", "it's the 12th", "", "user: <s> [INST] é☃"]
    messages = []
    for number, answer in enumerate(answers):
        media = [{"type": "audio", "path": "a.wav"}, text("and "), {"type": "video", "path": "b.mp4"}]
        messages.append(Message(role="user", content=[*media[: 3 * (number % 2)], text("Please <|im_end|> do.")]))
        last = number == len(answers) - 1
        messages.append(Message(role="assistant", content=answer, supervised=last or not last_only))
    runs, before = [], False
    for piece in chat.encode_chat(messages):
        if isinstance(piece, MediaPiece):
            before = False
            continue
        for token, supervised in zip(piece.ids, piece.supervised, strict=True):
            if supervised:
                runs = [*runs[:-1], [*runs[-1], token]] if before else [*runs, [token]]
            before = supervised
    wanted = answers[-1:] if last_only else answers
    assert [chat.decode(run).strip() for run in runs] == wanted
    assert all(run[-1] in chat.stop_token_ids for run in runs)
    assert not any(set(run[:-1]) & set(chat.stop_token_ids) for run in runs)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_a_token_across_the_border_of_an_answer_is_learnt_whole(name):
    # A tokenizer without words joins what it likes; nothing of the answer is lost, and little of the template added.
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokens = BUILT_IN[name]
    corpus = [f"{before}hello" for before in ("\n", "\n\n", "assistant\n", "model\n", "ASSISTANT: ", " ")] * 50
    special = sorted({*tokens.all, "<s>", "</s>"})
    backend.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=600, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=tokens.bos or "<s>", eos_token=tokens.eos or "</s>"
    )
    chat = ChatTokenizer(fast, read_template(name), name)
    (piece,) = chat.encode_chat([Message(role="user", content="hi"), Message(role="assistant", content="hello")])
    learnt = [number for number, supervised in zip(piece.ids, piece.supervised, strict=True) if supervised]
    *said, end = learnt
    text = fast.decode(said)
    assert text.endswith("hello")
    assert fast.decode(piece.ids).count("hello") == 1
    first = fast.decode(said[:1])
    assert text == "hello" or "h" in first or first.isspace()
    assert fast.convert_ids_to_tokens(end) in special
