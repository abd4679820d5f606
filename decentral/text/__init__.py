"""Text that peers train on: packed windows of tokens with ids that are the same everywhere.

from decentral.text import Folder, TextWindows

dataset = TextWindows(Folder("corpus", "**/*.txt"), context=256)
for batch in run.data(dataset, batch_size=32, num_workers=2):    # int64 [32, 257]
    ...

documents      Folder, JsonLines, SavedDataset                           sources.py, saved.py
pieces         a document in parts of some 4 KiB, and their token counts      index.py
windows        of context + 1 tokens, tokenized by whoever reads one          windows.py
"""

from decentral.text.saved import SavedDataset
from decentral.text.sources import Folder, JsonLines, Source
from decentral.text.tokenizers import Bytes, Tokenizer, load_tokenizer
from decentral.text.windows import TextWindows

__all__ = [
    "Bytes",
    "Folder",
    "JsonLines",
    "SavedDataset",
    "Source",
    "TextWindows",
    "Tokenizer",
    "load_tokenizer",
]
