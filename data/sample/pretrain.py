"""Make the sample's starting checkpoint: a very small RobertaDot with a byte-level BPE vocabulary of its own.

It replaces roberta-base and the published warm-up model: it knows some language and some relevance, but has
never seen a description query. It learns from the sample's passages, their titles, sentences and phrases, from
WordNet's glosses, and from a teacher's embeddings of these texts (all-MiniLM-L6-v2, Apache-2.0). Phrases and
glosses that equal any query are dropped.

--gcide makes the starting checkpoint of data/gcide instead. Titles are its headwords, clauses its first definitions. It
learns from no glosses, because these are the queries there.

The teacher's embeddings are computed once and kept in --work_dir. The teacher is not needed afterwards.
--teacher is a folder, such as the one that data/sample/minilm.py writes, or a name on the Hugging Face hub.
--wordnet is a folder with data.noun, data.verb, ... of WordNet 3.0 (in Debian: package wordnet-base, folder
/usr/share/wordnet).

    python data/sample/pretrain.py --work_dir runs/pretrain --wordnet /usr/share/wordnet --bf16
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from drhard.commands import command
from drhard.files import write_whole_file
from drhard.model_folder import save_encoder
from drhard.qrels import read_relevant
from drhard.roberta_dot import RobertaDot
from drhard.tokenizer import RobertaTokenizer

import numpy as np
import tokenizers
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer, RobertaConfig

HERE = Path(__file__).resolve().parent

# The model. 2 x 128 trains in minutes on 2 cores, and 2 bytes a weight keep the file below 4 MB.
VOCAB_SIZE = 8000
HIDDEN_SIZE = 128
LAYERS = 2
HEADS = 4
INTERMEDIATE_SIZE = 512
OUTPUT_SIZE = 128

# Maximum lengths of texts in tokens.
PASSAGE_LENGTH = 128
QUERY_LENGTH = 40

# A step: PASSAGES passages, for each of them one pseudo query of each kind, and GLOSSES glosses.
PASSAGES = 96
GLOSSES = 128
CLAUSE_SHARE = 0.6  # how often a passage's query is its defining clause, if it has one, and not its title
NEIGHBOURS = 8  # half of the batches consist of groups of this size with similar teacher embeddings
NEIGHBOURHOOD = 24  # a group is drawn from this many nearest passages

TEACHER_SCALE = 20.0  # a cosine of the teacher times this is a logit, as in the teacher's own training
TEACHER_LENGTH = 256  # the teacher's own maximum
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HELD_OUT = 700  # the last training queries, to choose settings; nothing here learns from them
SEED = 42

DEFINITION = re.compile(
    r"\b(?:is|are|was|were|refers to|means|describes|comprises?)\s+(?:(?:a|an|the|one of the|any)\s+)?(.+)$",
    re.I,
)
CLAUSE_END = re.compile(r"[,;:(]|\s(?:that|which|who|whose|where|when|while|and is|and was)\s")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"“])")


GCIDE_PASSAGES = 40_000
ENTRY_START = re.compile(r"^(?:(?:\([^()]*\)|[A-Za-z]{1,6}\.|[&;,0-9.]+)\s+)*")  # "v. t. (Naut.) 1. "


@dataclass
class Texts:
    """The texts to learn from, each once, and the positions of each kind of text."""

    texts: list[str]
    passages: list[int]  # in the order of the collection
    titles: list[int]
    clauses: list[list[int]]  # of each passage: "X is a <clause>"
    sentences: list[list[int]]
    phrases: list[list[int]]  # short spans cut out of its sentences
    glosses: list[int]


# 1. Texts ---------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> Iterator[list[str]]:
    """Yield the fields of each line of a TSV file, gzipped or not."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield line.rstrip("\n").split("\t")


def clauses_of(sentence: str) -> list[str]:
    """Return the clauses of `X is a <clause>`: up to the end of the sentence, and up to the first comma or the like."""
    match = DEFINITION.search(sentence)
    if match is None or match.start() > 120:
        return []
    clause = match.group(1).rstrip(". ")
    short = CLAUSE_END.split(clause)[0].strip()
    return [text for text in dict.fromkeys((clause, short)) if 3 <= len(text.split()) <= 25]


def phrases_of(sentence: str, count: int, draw: random.Random) -> list[str]:
    """Draw `count` spans of 3 to 10 words."""
    words = sentence.rstrip(".").split()
    phrases = []
    for _ in range(count if len(words) > 5 else 0):
        size = draw.randint(3, min(10, len(words) - 1))
        start = draw.randint(0, len(words) - size)
        phrases.append(" ".join(words[start : start + size]).strip(",;:()"))
    return [phrase for phrase in phrases if phrase]


def read_glosses(folder: Path) -> Iterator[str]:
    """Yield WordNet's definitions without their examples."""
    for name in ("data.noun", "data.verb", "data.adj", "data.adv"):
        with open(folder / name, encoding="latin-1") as lines:
            for line in lines:
                if line.startswith("  "):  # the licence on top
                    continue
                gloss = line.rpartition(" | ")[2].strip().split('; "')[0].strip(" ;")
                if len(gloss.split()) >= 2:
                    yield gloss


def collect_gcide_texts(dataset: Path) -> Texts:
    """Collect the texts of the collection's first GCIDE_PASSAGES entries."""
    draw = random.Random(SEED)
    index: dict[str, int] = {}

    def position(text: str) -> int:
        return index.setdefault(text, len(index))

    texts = Texts([], [], [], [], [], [], [])
    for _, entry in islice(read_rows(dataset / "collection.tsv"), GCIDE_PASSAGES):
        head, _, definition = entry.partition(", ")
        definition = ENTRY_START.sub("", definition)
        sentences = [text for text in SENTENCE_END.split(definition) if len(text.split()) >= 3]
        first = sentences[:1]
        short = [CLAUSE_END.split(text)[0].strip() for text in first]
        texts.passages.append(position(entry))
        texts.titles.append(position(head))
        texts.clauses.append([position(text) for text in dict.fromkeys(short) if len(text.split()) >= 3])
        texts.sentences.append([position(text) for text in sentences[:2]])
        texts.phrases.append([position(span) for text in first for span in phrases_of(text, 1, draw)])
    texts.texts = list(index)
    return texts


def collect_texts(wordnet: Path | None) -> Texts:
    """Collect all texts to learn from, except those that equal any query."""
    draw = random.Random(SEED)
    queries = set()
    for path in sorted((HERE / "passage" / "dataset").glob("*queries*.tsv")):
        queries.update(text.lower() for _, text in read_rows(path))

    index: dict[str, int] = {}

    def position(text: str) -> int:
        return index.setdefault(text, len(index))

    passages, titles, clauses, sentences, phrases = [], [], [], [], []
    for _, _, title, body in read_rows(HERE / "doc" / "dataset" / "msmarco-docs.tsv.gz"):
        whole_sentences = [text for text in SENTENCE_END.split(body) if len(text.split()) >= 4]
        first = SENTENCE_END.split(body)[0]
        passages.append(position(body))
        titles.append(position(title))
        clauses.append([position(text) for text in clauses_of(first) if text.lower() not in queries])
        sentences.append([position(text) for text in whole_sentences if text.lower() not in queries])
        spans = [span for text in whole_sentences for span in phrases_of(text, 2, draw)]
        phrases.append([position(text) for text in spans if text.lower() not in queries])
    glosses = []
    if wordnet:
        glosses = [position(text) for text in read_glosses(wordnet) if text.lower() not in queries]
    return Texts(list(index), passages, titles, clauses, sentences, phrases, sorted(set(glosses)))


# 2. The teacher ---------------------------------------------------------------------------------------------


def teacher_vectors(texts: list[str], name: str, work_dir: Path, bf16: bool) -> np.ndarray:
    """Return the teacher's unit embeddings, (len(texts), 384) float16. Those of the same texts are computed once."""
    stamp = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
    path = work_dir / f"teacher-{stamp}.npy"
    if path.exists():
        return np.load(path)
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModel.from_pretrained(name).eval().to(DEVICE, torch.bfloat16 if bf16 else torch.float32)
    vectors = np.zeros((len(texts), model.config.hidden_size), dtype=np.float16)
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    with torch.inference_mode():
        for start in tqdm(range(0, len(order), 64), desc="teacher", mininterval=5):
            rows = order[start : start + 64]
            batch = tokenizer(
                [texts[row] for row in rows],
                padding=True,
                truncation=True,
                max_length=TEACHER_LENGTH,
                return_tensors="pt",
            ).to(DEVICE)
            hidden = model(**batch).last_hidden_state.float()  # (B, L, 384)
            mask = batch["attention_mask"][:, :, None]
            vectors[rows] = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).half().cpu().numpy()
    with write_whole_file(path) as file:
        np.save(file, vectors)
    return vectors


# 3. The vocabulary ------------------------------------------------------------------------------------------


def train_vocabulary(texts: list[str], folder: Path) -> RobertaTokenizer:
    """Train a byte-level BPE vocabulary on lower-cased text, with RoBERTa's special ids. Write it into `folder`."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 5,
        min_frequency=2,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator((text.lower() for text in texts), trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    tokens = sorted(bpe.get_vocab(), key=bpe.get_vocab().__getitem__)
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *tokens, "<mask>"]
    # The constructor checks that the merges make every token.
    tokenizer = RobertaTokenizer({token: i for i, token in enumerate(tokens)}, merges, do_lower_case=True)
    tokenizer.save_pretrained(folder)
    return tokenizer


# 4. The model -----------------------------------------------------------------------------------------------


def start_model(tokenizer: RobertaTokenizer, token_vectors: np.ndarray) -> RobertaDot:
    """Return a model whose `<s>` starts as the mean of its words' embeddings, which come from the teacher.

    With ordinary random weights, `<s>` has no information about its text, and learning hardly starts. So the last
    layer's attention starts uniform (query and key are zero), copies (value is the identity) and outweighs the
    former content of `<s>` (output is 8 times the identity).
    """
    torch.manual_seed(SEED)
    model = RobertaDot(
        RobertaConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN_SIZE,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=INTERMEDIATE_SIZE,
            max_position_embeddings=514,
            type_vocab_size=1,
            bos_token_id=0,
            pad_token_id=1,
            eos_token_id=2,
            output_embedding_size=OUTPUT_SIZE,
        )
    )
    with torch.no_grad():
        centred = torch.from_numpy(token_vectors.astype(np.float32))
        centred -= centred.mean(0)
        _, _, axes = torch.linalg.svd(centred, full_matrices=False)
        words = centred @ axes[:HIDDEN_SIZE].T  # the directions in which words differ most
        embedding = model.roberta.embeddings.word_embeddings.weight
        embedding.copy_(words * (0.1 / words.std()))
        embedding[tokenizer.pad_token_id] = 0
        model.roberta.embeddings.position_embeddings.weight.mul_(0.5)
        last = model.roberta.encoder.layer[-1].attention
        for projection in (last.self.query, last.self.key):
            projection.weight.zero_()
        last.self.value.weight.copy_(torch.eye(HIDDEN_SIZE))
        last.output.dense.weight.copy_(8 * torch.eye(HIDDEN_SIZE))
        # Scale inner products for a softmax: about TEACHER_SCALE for equal directions.
        model.norm.weight.fill_((TEACHER_SCALE / OUTPUT_SIZE) ** 0.5)
    return model


# 5. Training ------------------------------------------------------------------------------------------------


def pad(tokens: list[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask, both (B, L) int64 on the device."""
    ids = torch.full((len(tokens), max(map(len, tokens))), pad_id)
    for row, line in enumerate(tokens):
        ids[row, : len(line)] = torch.tensor(line)
    ids = ids.to(DEVICE)
    return ids, (ids != pad_id).long()


class Batches:
    """Endless batches of (positions of passages, positions of short texts)."""

    def __init__(self, texts: Texts, vectors: np.ndarray):
        self.texts = texts
        self.draw = random.Random(SEED)
        passages = torch.from_numpy(vectors[texts.passages]).float().to(DEVICE)
        self.near = [
            row for block in passages.split(1000) for row in (block @ passages.T).topk(NEIGHBOURHOOD).indices.tolist()
        ]

    def passages(self) -> Iterator[list[int]]:
        """Yield rows of passages: alternately a random batch, and a batch of groups of neighbours."""
        every = list(range(len(self.texts.passages)))
        while True:
            self.draw.shuffle(every)
            for start in range(0, len(every) - PASSAGES + 1, PASSAGES):
                rows = every[start : start + PASSAGES]
                yield rows
                seeds = rows[: PASSAGES // NEIGHBOURS]
                groups = [row for seed in seeds for row in self.draw.sample(self.near[seed], NEIGHBOURS)]
                yield list(dict.fromkeys(groups))

    def __iter__(self) -> Iterator[tuple[list[int], list[int]]]:
        texts, draw = self.texts, self.draw
        for rows in self.passages():
            short = []
            for row in rows:
                named = [texts.titles[row]]
                if texts.clauses[row] and draw.random() < CLAUSE_SHARE:
                    named = texts.clauses[row]
                kinds = (named, texts.sentences[row], texts.phrases[row])
                short += [draw.choice(kind) for kind in kinds if kind]
            if texts.glosses:
                short += draw.sample(texts.glosses, GLOSSES)
            yield [texts.passages[row] for row in rows], short


def imitation_losses(
    passages: torch.Tensor, short: torch.Tensor, teachers: tuple[torch.Tensor, torch.Tensor], to_teacher: nn.Linear
) -> tuple[torch.Tensor, torch.Tensor]:
    """How far the model is from the teacher: in the order of passages, and in the place of each text.

    Args:
        passages: (P, dim) the model's.
        short: (S, dim) the model's, of short texts.
        teachers: (P, dim), (S, dim) the teacher's of the same texts.
        to_teacher: maps the model's embeddings to the teacher's.
    """
    passages_t, short_t = teachers
    # The order of the batch's passages for each short text, as the teacher has it (KL divergence).
    target = (TEACHER_SCALE * short_t @ passages_t.T).softmax(1)
    ranking = F.kl_div((short @ passages.T).log_softmax(1), target, reduction="batchmean")
    # The teacher's embedding of each text, up to a linear map.
    guess = to_teacher(torch.cat([passages, short]))
    place = 1 - F.cosine_similarity(guess, torch.cat([passages_t, short_t])).mean()
    return ranking, place


def train(
    model: RobertaDot,
    texts: Texts,
    vectors: np.ndarray,
    tokens: list[list[int]],
    args: argparse.Namespace,
    evaluate: Callable[[], float],
) -> None:
    """Train the model to rank passages for a short text as the teacher does, and to predict its embeddings."""
    teacher = torch.from_numpy(vectors).to(DEVICE)
    to_teacher = nn.Linear(OUTPUT_SIZE, teacher.shape[1], device=DEVICE)  # not part of the model that is saved
    pad_id = model.config.pad_token_id
    optimizer = torch.optim.AdamW(
        [*model.parameters(), *to_teacher.parameters()], lr=args.learning_rate, weight_decay=0.01
    )
    # Linear warm-up over the first 5%, then linear decay to 0.
    ramp = max(1, args.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / ramp, (args.steps - step) / (args.steps - ramp))
    )
    autocast = torch.autocast(DEVICE.type, torch.bfloat16) if args.bf16 else nullcontext()
    batches = iter(Batches(texts, vectors))
    model.train()
    start = time.time()
    shown = torch.zeros(3)
    with tqdm(total=args.steps, desc="pre-training", mininterval=5) as bar:
        for step in range(args.steps):
            passage_rows, short_rows = next(batches)
            with autocast:
                passages = model(*pad([tokens[row][:PASSAGE_LENGTH] for row in passage_rows], pad_id)).float()
                short = model(*pad([tokens[row][:QUERY_LENGTH] for row in short_rows], pad_id)).float()
            teachers = teacher[passage_rows].float(), teacher[short_rows].float()
            ranking, place = imitation_losses(passages, short, teachers, to_teacher)
            loss = ranking + place
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            shown += torch.tensor([loss.item(), ranking.item(), place.item()])
            bar.update()
            if (step + 1) % args.eval_steps == 0 or step + 1 == args.steps:
                n = args.eval_steps
                tqdm.write(
                    f"step {step + 1}  {time.time() - start:.0f} s  loss {shown[0] / n:.4f}  "
                    f"ranking {shown[1] / n:.4f}  place {shown[2] / n:.4f}  held-out MRR@10 {evaluate():.4f}"
                )
                shown.zero_()
                model.train()


# 6. Evaluation ----------------------------------------------------------------------------------------------


@torch.inference_mode()
def embed(model: RobertaDot, tokens: list[list[int]]) -> torch.Tensor:
    """Return embeddings (len(tokens), dim), in the order of `tokens`."""
    model.eval()
    out = torch.zeros(len(tokens), OUTPUT_SIZE, device=DEVICE)
    order = sorted(range(len(tokens)), key=lambda row: len(tokens[row]))
    for start in range(0, len(order), 128):
        rows = order[start : start + 128]
        out[rows] = model(*pad([tokens[row] for row in rows], model.config.pad_token_id))
    return out


class Evaluation:
    """Computes the MRR@10 of some queries over all passages."""

    def __init__(self, tokenizer: RobertaTokenizer, folder: Path, split: str, last: int | None):
        queries = [(int(qid), text) for qid, text in read_rows(folder / f"queries.{split}.tsv")]
        queries = queries[-last:] if last else queries
        collection = [(int(pid), text) for pid, text in read_rows(next(folder.glob("collection.tsv*")))]
        row_of = {pid: row for row, (pid, _) in enumerate(collection)}
        relevant = read_relevant(folder / f"qrels.{split}.tsv")
        cut = {"max_length": 32, "truncation": True}
        self.queries = tokenizer.encode_batch([text for _, text in queries], **cut)
        cut["max_length"] = PASSAGE_LENGTH
        self.passages = tokenizer.encode_batch([text for _, text in collection], **cut)
        self.relevant = torch.tensor([row_of[relevant[qid][0]] for qid, _ in queries])

    def __call__(self, model: RobertaDot) -> float:
        scores = embed(model, self.queries) @ embed(model, self.passages).T
        best = scores.topk(10).indices.cpu()
        hits = (best == self.relevant[:, None]).float()
        return float((hits / torch.arange(1, 11)).sum(1).mean())


# 7. All together --------------------------------------------------------------------------------------------


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work_dir", type=Path, required=True, help="for the vocabulary and the teacher's embeddings")
    parser.add_argument("--output_dir", type=Path, default=HERE / "warmup")
    parser.add_argument("--teacher", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--wordnet", type=Path, help="folder with WordNet's data.noun, ...; none: no glosses")
    parser.add_argument("--gcide", type=Path, help="folder that data/gcide/make_gcide.py wrote; none: the sample")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--bf16", action="store_true", help="faster where the processor has bfloat16")
    parser.add_argument("--eval_steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work_dir.mkdir(parents=True, exist_ok=True)

    dataset = args.gcide or HERE / "passage" / "dataset"
    texts = collect_gcide_texts(args.gcide) if args.gcide else collect_texts(args.wordnet)
    print(
        f"{len(texts.texts):,} texts: {len(texts.passages):,} passages, {sum(map(len, texts.sentences)):,} "
        f"sentences, {sum(map(len, texts.clauses)):,} clauses, {sum(map(len, texts.phrases)):,} phrases, "
        f"{len(texts.glosses):,} glosses"
    )
    vocabulary = [texts.texts[row] for row in (*texts.passages, *texts.titles)]
    tokenizer = train_vocabulary(vocabulary, args.work_dir / "vocabulary")
    words = [tokenizer.decode([id_]).strip() or "." for id_ in range(len(tokenizer))]
    vectors = teacher_vectors(texts.texts, args.teacher, args.work_dir, args.bf16)
    word_vectors = teacher_vectors(words, args.teacher, args.work_dir, args.bf16)
    tokens = tokenizer.encode_batch(texts.texts, max_length=PASSAGE_LENGTH, truncation=True)
    model = start_model(tokenizer, word_vectors).to(DEVICE)
    print(f"{len(tokenizer):,} tokens in the vocabulary, {model.num_parameters():,} parameters")
    held_out = Evaluation(tokenizer, dataset, "train", HELD_OUT)
    print(f"at the start: held-out MRR@10 {held_out(model):.4f}")
    train(model, texts, vectors, tokens, args, lambda: held_out(model))
    save_encoder(model.cpu().half(), args.output_dir, tokenizer_from=args.work_dir / "vocabulary")
    print(f"wrote {args.output_dir}")


if __name__ == "__main__":
    main()
