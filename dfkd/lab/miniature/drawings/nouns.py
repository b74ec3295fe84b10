"""Which names of drawings stand for things, and not for parts of user interfaces."""

from collections import Counter
from collections.abc import Sequence

from dfkd.lab.miniature.drawings.icons import Drawing, word_set

UI_WORDS = word_set(
    "arrow arrows chevron caret align alignment text format border layout grid column columns "
    "row rows sort filter menu list add remove plus minus close check checkmark checkbox "
    "toggle expand collapse zoom crop undo redo refresh reload sync upload download share "
    "link unlink edit copy paste cut more off disabled slash left right up down top bottom "
    "horizontal vertical previous next skip play pause stop angle circle square rectangle "
    "hexagon octagon letter number alphabet order split merge code api data user users "
    "account login logout wifi signal network cellular file document folder page note form "
    "table cell message chat bubble view window panel sidebar tab screen settings control "
    "insert indent heading paragraph font stroke path vector node corner direction turn move "
    "resize rotate flip percent math equal divide symbol sign emoji git branch commit request "
    "pull server database badge type flow process task status"
)
"""Words of user interfaces, and of shapes and signs in general."""


def object_nouns(rows: Sequence[Drawing]) -> frozenset[str]:
    """Words that name an object: one-word names that occur in at least three drawings' names.

    Words of user interfaces are left out.
    """
    counts = Counter(word for row in rows for word in set(row.words))
    single = {row.words[0] for row in rows if len(row.words) == 1}
    return frozenset(word for word in single if counts[word] > 2) - UI_WORDS


def common_nouns(rows: Sequence[Drawing], count: int) -> list[str]:
    """The `count` most frequent one-word names, sorted, without words of user interfaces."""
    seen = Counter(r.concept for r in rows if len(r.words) == 1)
    names = [n for n, _ in seen.most_common() if n.isalpha() and len(n) > 2 and n not in UI_WORDS]
    return sorted(names[:count])
