"""The compiled loops of beam search: n-gram look-ups, tries, hotwords, and the frames.

All in one file, because numba's cache on disk sees changes of a function's own file only. `asr.decode.beam` says what
is computed; the records below say what a hypothesis is.

A prefix is known by a 64-bit hash of its tokens, so no tree of prefixes is kept: a hypothesis that is extended into
one that the beam holds is found by its parent's hash. Where tokens stand is kept apart, in `NODE`s: each hypothesis has
a best alignment that ends in a blank and one that does not, each a chain of nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np

from asr.compiled import compiled

LN_10 = math.log(10.0)
NEVER = -1e4  # log-probability of a blank where a frame allows nothing else
NEGLIGIBLE = -40.0  # log of what vanishes beside 1 in float64
UNKNOWN = np.nan  # a score that is computed when it is first asked for
OFF = -1  # the node of a word that the trie lacks
DELIMITER = 0  # the character between words
CHECK_FRAMES = 64  # frames between two looks at what lies behind the horizon

ENTRY = np.dtype(
    [
        ("key", np.uint64),  # hash of the tokens
        ("parent", np.uint64),  # hash of all but the last
        ("blank", np.float64),  # log-probability of all alignments that end in a blank
        ("nonblank", np.float64),  # and of those that end in the last token
        ("fixed", np.float64),  # weighted scores beside the frames': language model, bonus, hotwords
        ("lm", np.float64),  # natural log-probability by the language model, unweighted
        ("rank", np.float64),  # by which the beam is cut
        ("closing", np.float64),  # what `fixed` gains if the open word ends here; UNKNOWN until needed
        ("closing_lm", np.float64),
        ("unknown", np.float64),  # what `fixed` gains if the open word turns out to be unknown; UNKNOWN until needed
        ("unknown_lm", np.float64),
        ("best_blank", np.float64),  # log-probability of the best alignment that ends in a blank
        ("best_nonblank", np.float64),
        ("peak_blank", np.float64),  # of that alignment's last token, its log-probability at its best frame
        ("peak_nonblank", np.float64),
        ("end_blank", np.int64),  # of that alignment's last token, the frame after its last
        ("path_blank", np.int32),  # of that alignment, the last node
        ("path_nonblank", np.int32),
        ("last", np.int32),  # last token, -1 if none
        ("units", np.int32),  # words (or characters) that the bonus counted
        ("context", np.int32),  # the language model's state
        ("closing_context", np.int32),
        ("unknown_context", np.int32),
        ("node", np.int32),  # of the open word in the trie, or OFF
        ("hot", np.int32),  # of the hotwords' automaton
        ("open", np.bool_),  # whether a word has begun
    ],
    align=True,
)
NODE = np.dtype(
    [
        ("key", np.uint64),  # hash of the tokens up to this one
        ("frame", np.int64),  # at which the token begins
        ("before_end", np.int64),  # frame after the last one of the token before
        ("before_peak", np.float64),  # log-probability of the token before at its best frame
        ("before", np.int32),  # node of the token before; nodes stand behind those that they name
        ("token", np.int32),  # -1 in node 0, which stands for what was before the first token or was dropped
    ],
    align=True,
)


NGRAM = np.dtype([("word", np.int32), ("log10", np.float32)], align=True)  # its last word and its log10 probability
CONTEXT = np.dtype(
    [
        ("child", np.int32),  # first of the n-grams that continue it, which are sorted by their last word
        ("backoff", np.float32),  # log10
    ],
    align=True,
)
LETTER = np.dtype(
    [
        ("mask", np.uint64),  # bit c % 64 is set if a character c leads on from here
        ("ahead", np.float64),  # what `fixed` can expect to gain at best from the words below
        ("child", np.int32),  # first of the nodes below, which are sorted by their labels
        ("label", np.int32),  # the character that leads here
        ("word", np.int32),  # the language model's id of the word that ends here; -1 if none does
    ],
    align=True,
)
STRETCH = np.dtype(
    [
        ("gain", np.float64),  # boosts of the phrases that end here
        ("credit", np.float64),  # lent to the phrase that has begun
        ("child", np.int32),
        ("label", np.int32),
        ("fail", np.int32),  # node of the longest suffix
    ],
    align=True,
)
TOKEN = np.dtype(
    [
        ("character", np.int32),  # first of its characters
        ("unit", np.int32),  # first of the language model's words in it, where the unit is not the word
        ("closes", np.bool_),  # whether it ends the word before
    ],
    align=True,
)


class Ngrams(NamedTuple):
    """A back-off model. Ids: 0 is the empty context, 1 + w the word w, then the n-grams by order, each by its parent.

    ngrams: (N + 1,) `NGRAM`. contexts: `CONTEXT` of those that can be one, that is of all orders but the highest, and
    one more where the last's children end. suffixes: ids without the first word, of orders 3 up to the highest but
    one; those of bigrams are their last words. second, third: first ids of orders 2 and 3.
    """

    ngrams: Any
    contexts: Any
    suffixes: Any
    second: int
    third: int


class Hotwords(NamedTuple):
    """Aho and Corasick's automaton (1975) over characters, its root node 0.

    nodes: (N + 1,) `STRETCH`, the last where children end. start: the node of a text's beginning. most: the greatest
    gain and credit together.
    """

    nodes: Any
    start: int
    most: float


class Tokens(NamedTuple):
    """What tokens spell.

    tokens: (V + 1,) `TOKEN`, the last where characters and units end. characters, units: those of all tokens.
    """

    tokens: Any
    characters: Any
    units: Any


class Rules(NamedTuple):
    """How to search.

    alpha: times ln 10, the weight of the model's log10. beta: bonus a unit. unknown: added for a word that the model
    lacks. by_words: the unit is the word. has_lm, has_trie, has_hotwords: whether these are to be asked. closed: only
    the trie's words may be said. most_hot, second, third: see `Hotwords` and `Ngrams`.
    """

    beam_size: int
    cutoff: float
    margin: float
    horizon: int
    alpha: float
    beta: float
    unknown: float
    unknown_word: int
    by_words: bool
    has_lm: bool
    has_trie: bool
    has_hotwords: bool
    closed: bool
    most_hot: float
    second: int
    third: int


def borrowing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a part of a compiled function: one that makes no arrays, and counts no references to those it is given.

    Counting, atomic and at each call, would take half of the time.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False}
    return numba.njit(**options)(function)


@borrowing
def find_word(ngrams, first, last, word):
    """Place of `word` in ngrams[first:last], which are sorted; -1 if it is not there."""
    while first < last:
        middle = (first + last) >> 1
        found = ngrams[middle].word
        if found < word:
            first = middle + 1
        elif found > word:
            last = middle
        else:
            return middle
    return -1


@borrowing
def find_label(nodes, node, label):
    """The child of a trie's node to which a character leads; -1 if there is none."""
    first, last = nodes[node].child, nodes[node + 1].child
    while first < last:
        middle = (first + last) >> 1
        found = nodes[middle].label
        if found < label:
            first = middle + 1
        elif found > label:
            last = middle
        else:
            return middle
    return -1


@borrowing
def suffix(context, ngrams, suffixes, second, third):
    """The context without its first word."""
    if context < second:
        return 0
    if context < third:
        return 1 + ngrams[context].word
    return suffixes[context - third]


@borrowing
def back_off(context, word, ngrams, contexts, suffixes, second, third):
    """log10 P(word | context), and the context after it (Katz' back-off as ARPA files define it)."""
    backoff = 0.0
    num_contexts = len(contexts) - 1
    while context > 0:
        child = find_word(ngrams, contexts[context].child, contexts[context + 1].child, word)
        if child >= 0:
            log10 = ngrams[child].log10 + backoff
            while child >= num_contexts:  # of the highest order: the longest suffix that is a context
                context = suffix(context, ngrams, suffixes, second, third)
                if context == 0:
                    child = 1 + word
                    break
                shorter = find_word(ngrams, contexts[context].child, contexts[context + 1].child, word)
                if shorter >= 0:
                    child = shorter
            return log10, child
        backoff += contexts[context].backoff
        context = suffix(context, ngrams, suffixes, second, third)
    child = 1 + word
    return ngrams[child].log10 + backoff, child if child < num_contexts else 0


@compiled
def lookup(context, word, ngrams, contexts, suffixes, second, third):
    """`back_off` for callers in Python."""
    return back_off(context, word, ngrams, contexts, suffixes, second, third)


@borrowing
def step_hotwords(nodes, node, character):
    while True:
        child = find_label(nodes, node, character)
        if child >= 0:
            return child
        if node == 0:
            return 0
        node = nodes[node].fail


@borrowing
def log_add(a, b):
    if a < b:
        a, b = b, a
    if b - a < NEGLIGIBLE or a == -np.inf:
        return a
    return a + math.log1p(math.exp(b - a))


@borrowing
def extended_key(key, token):
    """Hash of a prefix with one more token (the mixing of splitmix64)."""
    x = key + np.uint64(0x9E3779B97F4A7C15) * np.uint64(token + 1)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@borrowing
def close(entry, rules, trie, hotwords, ngrams, contexts, suffixes):
    """Fill in what the end of the open word brings."""
    score, lm, context = 0.0, 0.0, entry.context
    if entry.node != OFF:
        word = trie[entry.node].word if rules.has_trie else rules.unknown_word
        if rules.closed and word < 0:
            score = -np.inf
        else:
            if rules.has_lm:
                if word < 0 or word == rules.unknown_word:
                    word = rules.unknown_word
                    score += rules.unknown
                log10, context = back_off(context, word, ngrams, contexts, suffixes, rules.second, rules.third)
                lm = LN_10 * log10
                score += rules.alpha * log10
            score += rules.beta
    if rules.has_hotwords:
        score += hotwords[step_hotwords(hotwords, entry.hot, DELIMITER)].gain
    entry.closing, entry.closing_lm, entry.closing_context = score, lm, context


@borrowing
def miss(context, rules, ngrams, contexts, suffixes):
    """What it brings that the open word is in no list: to `fixed`, to `lm`, and the context after it."""
    score, lm = rules.beta, 0.0
    if rules.has_lm:
        log10, context = back_off(context, rules.unknown_word, ngrams, contexts, suffixes, rules.second, rules.third)
        lm = LN_10 * log10
        score += rules.alpha * log10 + rules.unknown
    return score, lm, context


@borrowing
def ahead_of(node, hot, rules, trie, hotwords):
    """What rank adds to the scores so far: the word that is open or next, and the credit of begun hotwords."""
    ahead = 0.0
    if rules.has_trie and node != OFF:
        ahead += trie[node].ahead
    if rules.has_hotwords:
        ahead += hotwords[hot].credit
    return ahead


@borrowing
def weigh(entry, token, rules, tokens, characters, units, trie, hotwords, ngrams, contexts, suffixes):
    """What a token brings to an entry whose `closing` and `unknown` are filled in where they are needed.

    Gives what `fixed` gains, -inf if the rules forbid the token; what `lm` and `units` gain; and the new context, node,
    hot and open.
    """
    gain, lm, num_units = 0.0, 0.0, 0
    context, node, hot, is_open = entry.context, entry.node, entry.hot, entry.open
    closes = rules.by_words and is_open and tokens[token].closes
    if closes:
        gain, lm, context = entry.closing, entry.closing_lm, entry.closing_context
        num_units = 1 if node != OFF else 0
        node, is_open = 0, False
        if rules.has_hotwords:
            hot = step_hotwords(hotwords, hot, DELIMITER)
    first, last = tokens[token].character, tokens[token + 1].character
    if rules.by_words and first < last:
        is_open = True
    if rules.has_trie and node != OFF:
        for k in range(first, last):
            character = characters[k]
            if not (trie[node].mask >> np.uint64(character & 63)) & np.uint64(1):
                node = OFF
                break
            node = find_label(trie, node, character)
            if node == OFF:
                break
        if node == OFF:
            if rules.closed:
                gain = -np.inf
            elif closes:
                unknown, unknown_lm, context = miss(context, rules, ngrams, contexts, suffixes)
                gain, lm, num_units = gain + unknown, lm + unknown_lm, num_units + 1
            else:
                gain, lm, num_units = gain + entry.unknown, lm + entry.unknown_lm, num_units + 1
                context = entry.unknown_context
    if rules.has_hotwords:
        for k in range(first, last):
            hot = step_hotwords(hotwords, hot, characters[k])
            gain += hotwords[hot].gain
    if not rules.by_words:
        for k in range(tokens[token].unit, tokens[token + 1].unit):
            gain += rules.beta
            num_units += 1
            if rules.has_lm:
                word = units[k]
                if word == rules.unknown_word:
                    gain += rules.unknown
                log10, context = back_off(context, word, ngrams, contexts, suffixes, rules.second, rules.third)
                lm += LN_10 * log10
                gain += rules.alpha * log10
    return gain, lm, num_units, context, node, hot, is_open


@borrowing
def index_keys(entries, held, table):
    """Hash table of the entries' keys: index + 1, open addressing."""
    table[:] = 0
    mask = np.uint64(len(table) - 1)
    for i in range(held):
        at = entries[i].key & mask
        while table[at]:
            at = (at + np.uint64(1)) & mask
        table[at] = i + 1


@borrowing
def index_of(entries, table, key):
    mask = np.uint64(len(table) - 1)
    at = key & mask
    while table[at]:
        if entries[table[at] - 1].key == key:
            return table[at] - 1
        at = (at + np.uint64(1)) & mask
    return -1


@borrowing
def smallest_of_best(ranks, candidates, count, scratch):
    """The `count`-th greatest of ranks[:candidates] (Hoare's selection)."""
    for c in range(candidates):
        scratch[c] = ranks[c]
    low, high, wanted = 0, candidates - 1, count - 1
    while low < high:
        pivot = scratch[(low + high) >> 1]
        i, j = low, high
        while i <= j:
            while scratch[i] > pivot:
                i += 1
            while scratch[j] < pivot:
                j -= 1
            if i <= j:
                scratch[i], scratch[j] = scratch[j], scratch[i]
                i += 1
                j -= 1
        if wanted <= j:
            high = j
        elif wanted >= i:
            low = i
        else:
            break
    return scratch[wanted]


@borrowing
def compact(entries, held, nodes, count, moved):
    """Keep the nodes that entries need, at the front and in their order; gives how many they are."""
    for k in range(count):
        moved[k] = k == 0
    for i in range(held):
        moved[entries[i].path_blank] = 1
        moved[entries[i].path_nonblank] = 1
    for k in range(count - 1, 0, -1):
        if moved[k]:
            moved[nodes[k].before] = 1
    kept = 0
    for k in range(count):
        if moved[k]:
            moved[k] = kept
            nodes[kept] = nodes[k]
            nodes[kept].before = moved[nodes[kept].before]
            kept += 1
    for i in range(held):
        entries[i].path_blank = moved[entries[i].path_blank]
        entries[i].path_nonblank = moved[entries[i].path_nonblank]
    return kept


@borrowing
def shared_node(entries, nodes):
    """The last node that all chains share; later nodes stand behind earlier ones, so the later of two is left."""
    shared = entries[0].path_blank
    for i in range(len(entries)):
        for node in (entries[i].path_blank, entries[i].path_nonblank):
            while node != shared:
                if node > shared:
                    node = nodes[node].before
                else:
                    shared = nodes[shared].before
    return shared


@borrowing
def place_on_chain(nodes, node, key):
    """The node with a key on the chain that ends in `node`, and the one behind it; -1 where there is none."""
    behind = -1
    while node > 0 and nodes[node].key != key:
        behind = node
        node = nodes[node].before
    return (node, behind) if node > 0 else (-1, -1)


@borrowing
def best_path(entry):
    return entry.path_blank if entry.best_blank >= entry.best_nonblank else entry.path_nonblank


@borrowing
def decide(entries, held, nodes, oldest):
    """Give up what disagrees with the best entry on tokens that began before `oldest`; gives how many are left.

    What agrees is given the best entry's places for these tokens, so that the chains meet. They meet in the earliest
    of their nodes, since nodes stand behind those that they name; the best entry's places are copied there.
    """
    best = 0
    for i in range(held):
        if entries[i].rank > entries[best].rank:
            best = i
    decided = best_path(entries[best])
    while decided > 0 and nodes[decided].frame >= oldest:
        decided = nodes[decided].before
    if decided == 0:
        return held
    key, earliest, frame = nodes[decided].key, decided, nodes[decided].frame
    end_frame, peak = end_on_chain(entries[best], nodes, key)
    for i in range(held):
        for end in (entries[i].path_blank, entries[i].path_nonblank):
            place, _ = place_on_chain(nodes, end, key)
            if 0 <= place < earliest:
                earliest = place
    kept = 0
    for i in range(held):
        entry = entries[i]
        blank = rejoin(nodes, entry.path_blank, key, earliest, frame, end_frame, peak)
        nonblank = rejoin(nodes, entry.path_nonblank, key, earliest, frame, end_frame, peak)
        if blank < 0 and nonblank < 0:
            continue
        entries[kept] = entry
        entry = entries[kept]
        if blank == earliest and entry.end_blank <= frame:
            entry.end_blank, entry.peak_blank = end_frame, peak
        entry.path_blank = blank if blank >= 0 else nonblank
        entry.path_nonblank = nonblank if nonblank >= 0 else blank
        kept += 1
    node = earliest
    while node != decided:  # both spell the same, so they end together
        nodes[node].frame = nodes[decided].frame
        nodes[node].before_end, nodes[node].before_peak = nodes[decided].before_end, nodes[decided].before_peak
        node, decided = nodes[node].before, nodes[decided].before
    return kept


@borrowing
def end_on_chain(entry, nodes, key):
    """On an entry's best path, the frame after the token with a key, and its log-probability at its best frame."""
    place, behind = place_on_chain(nodes, best_path(entry), key)
    if behind >= 0:
        return nodes[behind].before_end, nodes[behind].before_peak
    if entry.best_blank >= entry.best_nonblank:
        return entry.end_blank, entry.peak_blank
    return nodes[place].frame + 1, entry.peak_nonblank


@borrowing
def rejoin(nodes, end, key, earliest, frame, end_frame, peak):
    """Let a chain go through `earliest`, whose token is to begin at `frame`; gives its end, -1 if it cannot."""
    place, behind = place_on_chain(nodes, end, key)
    if place < 0:
        return -1
    if behind < 0:
        return earliest
    if nodes[behind].frame <= frame:
        return -1
    if nodes[behind].before_end <= frame:  # it had said the token before
        nodes[behind].before_end, nodes[behind].before_peak = min(end_frame, nodes[behind].frame), peak
    nodes[behind].before = earliest
    return end


@borrowing
def align_stay(new, old, to_blank, to_last, frame):
    """Best alignments of a prefix that stays: a blank, or its last token again."""
    if old.best_nonblank > old.best_blank:
        new.best_blank = old.best_nonblank + to_blank
        new.path_blank, new.peak_blank, new.end_blank = old.path_nonblank, old.peak_nonblank, frame
    else:
        new.best_blank = old.best_blank + to_blank
    new.best_nonblank = old.best_nonblank + to_last
    new.peak_nonblank = max(old.peak_nonblank, to_last)


@borrowing
def align_from(new, old, token, to_token, frame, nodes, count):
    """Best alignment of a prefix that `token` extends, where better than what `new` has; gives the number of nodes."""
    from_blank = token == old.last or old.best_blank >= old.best_nonblank
    before = old.best_blank if from_blank else old.best_nonblank
    if before + to_token <= new.best_nonblank:
        return count
    node = nodes[count]
    node.key, node.token, node.frame = new.key, token, frame
    if from_blank:
        node.before, node.before_end, node.before_peak = old.path_blank, old.end_blank, old.peak_blank
    else:
        node.before, node.before_end, node.before_peak = old.path_nonblank, frame, old.peak_nonblank
    new.best_nonblank, new.path_nonblank, new.peak_nonblank = before + to_token, count, to_token
    if new.best_blank == -np.inf:  # both chains spell the same tokens
        new.path_blank, new.peak_blank, new.end_blank = count, to_token, frame + 1
    return count + 1


@compiled
def read_frames(
    entries, nodes, frame, log_probs, top, top_ids, rules, tokens, characters, units, trie, hotwords, ngrams, contexts,
    suffixes,
):  # fmt: skip
    """Prefix beam search (Hannun et al., arXiv 1408.2873) over (n, V) log-probabilities.

    top, top_ids: (n, C) the greatest of each frame, in order, and their tokens. Gives entries, nodes and frame anew.
    """
    size, width = rules.beam_size, top.shape[1]
    table_size = 16
    while table_size < 4 * size:
        table_size *= 2
    beams = np.empty((2, size), entries.dtype)
    held, used = len(entries), len(nodes)
    beams[0, :held] = entries
    arena = np.empty(2 * used + 8 * size, nodes.dtype)
    arena[:used] = nodes
    table, parents, order = np.empty(table_size, np.int32), np.empty(size, np.int32), np.empty(size, np.int32)
    made, slots = np.zeros((size, width), np.bool_), np.full(log_probs.shape[1], -1, np.int32)
    stay = np.empty((size, 4))
    ranks, scratch = np.empty(5 * size), np.empty(5 * size)
    sources, said = np.empty(5 * size, np.int64), np.empty(5 * size, np.int64)
    t, side = np.int64(0), np.int64(0)  # not constants, for which `search` would be compiled once more
    while True:
        t, side, held, used = search(
            t, side, held, used, beams, arena, table, parents, order, made, slots, stay, ranks, scratch, sources,
            said, frame, log_probs, top, top_ids, rules, tokens, characters, units, trie, hotwords, ngrams, contexts,
            suffixes,
        )  # fmt: skip
        used = compact(beams[side], held, arena, used, np.empty(used, np.int32))
        if t == len(log_probs):
            return beams[side, :held].copy(), arena[:used].copy(), frame + t
        if 2 * (used + size) > len(arena):
            wider = np.empty(2 * len(arena), nodes.dtype)
            wider[:used] = arena[:used]
            arena = wider


@borrowing
def search(
    t, side, held, used, beams, arena, table, parents, order, made, slots, stay, ranks, scratch, sources, said,
    frame, log_probs, top, top_ids, rules, tokens, characters, units, trie, hotwords, ngrams, contexts, suffixes,
):  # fmt: skip
    """Read frames from t on until there are no more or the arena of nodes is full; `read_frames` says what the rest is.

    table: of `index_keys`. parents: place of each entry's parent, -1 if it is not held. made: whether an entry's
    extension by the frame's k-th token is held already. slots: k of each token. stay: of entries that stay, blank and
    nonblank after the frame, and before it their sum and what is ahead. ranks, sources, said: of candidates, the entry
    that each comes from and the token that it adds, -1 for none. Gives t, side, held, used.
    """
    size, width = rules.beam_size, top.shape[1]
    old, new = beams[side], beams[1 - side]
    most_unit = max(0.0, rules.beta + max(0.0, rules.unknown))
    most_next = trie[0].ahead if rules.has_trie else 0.0
    if not rules.closed:
        most_next = max(most_next, rules.beta + max(0.0, rules.unknown))

    while t < len(log_probs) and used + size <= len(arena):
        row, to_blank = log_probs[t], float(log_probs[t, 0])
        num_tokens, mass = 0, 0.0
        while num_tokens < width and mass < rules.cutoff:
            mass += math.exp(top[t, num_tokens])
            slots[top_ids[t, num_tokens]] = num_tokens
            num_tokens += 1

        # The prefixes that stay, with what comes to them from their parents.
        index_keys(old, held, table)
        best, least = -np.inf, np.inf
        for i in range(held):
            stay[i, 2] = log_add(old[i].blank, old[i].nonblank)
        for i in range(held):
            entry = old[i]
            blank, nonblank = stay[i, 2] + to_blank, -np.inf
            parents[i] = -1
            if entry.last >= 0:
                to_last = float(row[entry.last])
                nonblank = entry.nonblank + to_last
                p = index_of(old, table, entry.parent)
                parents[i] = p
                if p >= 0:
                    parent = old[p]
                    repeats = parent.last == entry.last
                    before = parent.blank if repeats else stay[p, 2]
                    nonblank = log_add(nonblank, before + to_last)
                    if slots[entry.last] >= 0:
                        made[p, slots[entry.last]] = True
            ahead = ahead_of(entry.node, entry.hot, rules, trie, hotwords)
            rank = log_add(blank, nonblank) + entry.fixed + ahead
            stay[i, 0], stay[i, 1], stay[i, 3] = blank, nonblank, ahead
            ranks[i], sources[i], said[i] = rank, i, -1
            best, least = max(best, rank), min(least, rank)
        candidates = held
        least = least if held == size else -np.inf
        least = max(least, best - rules.margin)

        # Prefixes with one more token.
        for i in range(held):
            entry = old[i]
            ahead = stay[i, 3]
            for k in range(num_tokens):
                token = top_ids[t, k]
                if token == 0 or made[i, k]:
                    continue
                acoustic = (entry.blank if token == entry.last else stay[i, 2]) + top[t, k] + entry.fixed
                if acoustic == -np.inf:
                    continue
                most = 0.0  # more than this cannot be gained
                if rules.by_words:
                    if tokens[token].closes and entry.open:
                        if math.isnan(entry.closing):
                            close(entry, rules, trie, hotwords, ngrams, contexts, suffixes)
                        most = entry.closing + most_next
                    elif rules.has_trie:
                        most = ahead
                        if not rules.closed and entry.node != OFF:
                            if math.isnan(entry.unknown):
                                entry.unknown, entry.unknown_lm, entry.unknown_context = miss(
                                    entry.context, rules, ngrams, contexts, suffixes
                                )
                            most = max(most, entry.unknown)
                else:
                    most = most_unit * (tokens[token + 1].unit - tokens[token].unit)
                if rules.has_hotwords:
                    most += rules.most_hot * (1 + tokens[token + 1].character - tokens[token].character)
                if acoustic + most <= least:
                    continue
                gain, _, _, _, node, hot, _ = weigh(
                    entry, token, rules, tokens, characters, units, trie, hotwords, ngrams, contexts, suffixes
                )
                rank = acoustic + gain + ahead_of(node, hot, rules, trie, hotwords)
                if rank <= least:
                    continue
                ranks[candidates], sources[candidates], said[candidates] = rank, i, token
                candidates += 1
                if candidates == len(ranks):
                    least = max(least, smallest_of_best(ranks, candidates, size, scratch))
                    candidates = keep_above(ranks, sources, said, candidates, least, size)
        for i in range(held):
            if parents[i] >= 0 and slots[old[i].last] >= 0:
                made[parents[i], slots[old[i].last]] = False
        for k in range(num_tokens):
            slots[top_ids[t, k]] = -1

        # Those that are kept.
        if candidates > size:
            least = max(least, smallest_of_best(ranks, candidates, size, scratch))
        candidates = keep_above(ranks, sources, said, candidates, least, size)
        now = frame + t
        kept = 0
        for c in range(candidates):  # best first, so that less is looked at next time
            at = c
            while at > 0 and ranks[order[at - 1]] < ranks[c]:
                order[at] = order[at - 1]
                at -= 1
            order[at] = c
        for place in range(candidates):
            c = order[place]
            i, token = sources[c], said[c]
            if ranks[c] == -np.inf:
                continue
            new[kept] = old[i]
            entry, before = new[kept], old[i]
            entry.rank = ranks[c]
            if token < 0:
                entry.blank, entry.nonblank = stay[i, 0], stay[i, 1]
                align_stay(entry, before, to_blank, float(row[before.last]) if before.last >= 0 else -np.inf, now)
                if parents[i] >= 0:
                    used = align_from(entry, old[parents[i]], before.last, float(row[before.last]), now, arena, used)
            else:
                to_token = float(row[token])
                entry.blank = -np.inf
                entry.nonblank = (before.blank if token == before.last else stay[i, 2]) + to_token
                entry.parent, entry.key = before.key, extended_key(before.key, token)
                gain, lm, num_units, entry.context, entry.node, entry.hot, entry.open = weigh(
                    before, token, rules, tokens, characters, units, trie, hotwords, ngrams, contexts, suffixes
                )
                entry.fixed += gain
                entry.lm += lm
                entry.units += num_units
                entry.closing = UNKNOWN
                if entry.context != before.context or entry.node == OFF:
                    entry.unknown = UNKNOWN
                entry.last = token
                entry.best_blank, entry.best_nonblank = -np.inf, -np.inf
                used = align_from(entry, before, token, to_token, now, arena, used)
            kept += 1
        if kept == 0:  # the frame allows nothing that the rules allow: it is read as a blank
            for i in range(held):
                new[i] = old[i]
                new[i].blank, new[i].nonblank = stay[i, 2] + NEVER, -np.inf
                new[i].rank += NEVER
                align_stay(new[i], old[i], NEVER, -np.inf, now)
            kept = held
        old, new, held = new, old, kept
        if now % CHECK_FRAMES == CHECK_FRAMES - 1 and now >= rules.horizon:
            held = decide(old, held, arena, now - rules.horizon)
        t += 1
        side = 1 - side
    return t, side, held, used


@borrowing
def keep_above(ranks, sources, said, candidates, least, size):
    """Keep candidates above `least`, then those at it, up to `size` in all; in their order. Gives their number."""
    above = 0
    for c in range(candidates):
        above += ranks[c] > least
    ties, kept = size - above, 0
    for c in range(candidates):
        if ranks[c] > least or (ranks[c] == least and ties > 0):
            ties -= ranks[c] == least
            ranks[kept], sources[kept], said[kept] = ranks[c], sources[c], said[c]
            kept += 1
    return kept


@compiled
def finish(entries, end_of_sentence, rules, trie, hotwords, ngrams, contexts, suffixes):
    """What each entry's scores become where the utterance ends: (K, 3) fixed, lm, units.

    -inf where the last word may not end.
    """
    scores = np.empty((len(entries), 3))
    for i in range(len(entries)):
        entry = entries[i]
        fixed, lm, context, units = entry.fixed, entry.lm, entry.context, entry.units
        if rules.by_words and entry.open:
            if math.isnan(entry.closing):
                close(entry, rules, trie, hotwords, ngrams, contexts, suffixes)
            fixed += entry.closing
            lm += entry.closing_lm
            context = entry.closing_context
            units += entry.node != OFF
        if rules.has_lm and end_of_sentence >= 0:
            log10, context = back_off(context, end_of_sentence, ngrams, contexts, suffixes, rules.second, rules.third)
            lm += LN_10 * log10
            fixed += rules.alpha * log10
        scores[i, 0], scores[i, 1], scores[i, 2] = fixed, lm, units
    return scores


@compiled
def chain_to(nodes, node):
    """The nodes from behind node 0 up to `node`."""
    length, at = 0, node
    while at > 0:
        length += 1
        at = nodes[at].before
    chain = np.empty(length, np.int64)
    while node > 0:
        length -= 1
        chain[length] = node
        node = nodes[node].before
    return chain


@compiled
def summarise(trie):
    """Fill in masks, and make each node's `ahead` the greatest of it and of what is below it."""
    for node in range(len(trie) - 2, -1, -1):  # parents stand before their children
        for child in range(trie[node].child, trie[node + 1].child):
            trie[node].mask |= np.uint64(1) << np.uint64(trie[child].label & 63)
            trie[node].ahead = max(trie[node].ahead, trie[child].ahead)


@compiled
def shared_chain(entries, nodes):
    """The nodes that all chains share."""
    return chain_to(nodes, shared_node(entries, nodes))


TAB, LINE_FEED, RETURN, BLANK = 9, 10, 13, 32
MINUS, PLUS, POINT, ZERO, NINE = 45, 43, 46, 48, 57
LETTER_E = 101


@borrowing
def hash_step(key, byte):
    """Fowler, Noll and Vo's hash, 1a, 64 bits."""
    return (key ^ np.uint64(byte)) * np.uint64(0x100000001B3)


@compiled
def fill_table(spellings, starts, table):
    """Hash table of words, their numbers + 1, open addressing."""
    mask = np.uint64(len(table) - 1)
    for word in range(len(starts) - 1):
        key = np.uint64(0xCBF29CE484222325)
        for k in range(starts[word], starts[word + 1]):
            key = hash_step(key, spellings[k])
        at = key & mask
        while table[at]:
            at = (at + np.uint64(1)) & mask
        table[at] = word + 1


@borrowing
def find_spelling(text, first, last, key, spellings, starts, table):
    """Number of the word text[first:last], -1 if there is none."""
    mask = np.uint64(len(table) - 1)
    at = key & mask
    while table[at]:
        word = table[at] - 1
        if starts[word + 1] - starts[word] == last - first:
            same = True
            for k in range(last - first):
                if spellings[starts[word] + k] != text[first + k]:
                    same = False
                    break
            if same:
                return word
        at = (at + np.uint64(1)) & mask
    return -1


@borrowing
def skip_blanks(text, at):
    while text[at] == BLANK or text[at] == TAB or text[at] == RETURN:
        at += 1
    return at


@borrowing
def parse_number(text, at):
    """A decimal number and what follows it; a place of -1 if it is none, or has more digits than a double holds."""
    negative = text[at] == MINUS
    at += negative or text[at] == PLUS
    mantissa, digits, exponent, pointed = 0, 0, 0, False
    while True:
        byte = text[at]
        if ZERO <= byte <= NINE:
            mantissa = 10 * mantissa + (byte - ZERO)
            digits += 1
            exponent -= pointed
        elif byte == POINT and not pointed:
            pointed = True
        else:
            break
        at += 1
    if text[at] | 32 == LETTER_E:
        at += 1
        below = text[at] == MINUS
        at += below or text[at] == PLUS
        power, size = 0, 0
        while ZERO <= text[at] <= NINE and size < 4:
            power = 10 * power + (text[at] - ZERO)
            size += 1
            at += 1
        exponent += -power if below else power
        digits = digits if size else 0
    if digits == 0 or digits > 15 or abs(exponent) > 22:  # both factors are exact up to there
        return 0.0, -1
    value = float(mantissa)
    value = value / 10.0**-exponent if exponent < 0 else value * 10.0**exponent
    return -value if negative else value, at


@compiled
def parse_ngrams(text, at, row, ids, log10, backoffs, spellings, starts, table):
    """Read lines of n-grams from text[at:], which ends with a line feed, into rows from `row` on.

    Stops before a line that is not plainly one. Gives the place, the row and the number of lines read.
    """
    lines = 0
    while row < len(ids) and at < len(text):
        here = skip_blanks(text, at)
        if text[here] == LINE_FEED:
            at = here + 1
            lines += 1
            continue
        probability, here = parse_number(text, here)
        if here < 0 or probability > 0 or skip_blanks(text, here) == here:
            break
        good = True
        for k in range(ids.shape[1]):
            here = skip_blanks(text, here)
            first, key = here, np.uint64(0xCBF29CE484222325)
            while text[here] > BLANK:
                key = hash_step(key, text[here])
                here += 1
            word = find_spelling(text, first, here, key, spellings, starts, table)
            if word < 0:
                good = False
                break
            ids[row, k] = word
        if not good:
            break
        here = skip_blanks(text, here)
        backoff = 0.0
        if text[here] != LINE_FEED:
            backoff, here = parse_number(text, here)
            if here < 0:
                break
            here = skip_blanks(text, here)
            if text[here] != LINE_FEED:
                break
        log10[row], backoffs[row] = probability, backoff
        row += 1
        lines += 1
        at = here + 1
    return at, row, lines
