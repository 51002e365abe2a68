"""One list of operations on a pod's volumes, by FTP or in a mounted folder; prints what each gave.

    operations.py ftp HOST PORT
    operations.py mount FOLDER
"""

import calendar
import ftplib
import io
import os
import stat
import sys
import time


class Missing(Exception):
    pass


class Refused(Exception):
    pass


class Ftp:
    def __init__(self, host, port):
        self.ftp = ftplib.FTP()
        self.ftp.encoding = "utf-8"
        self.ftp.connect(host, int(port), timeout=20)
        self.ftp.login()
        self.ftp.cwd("app")

    def ask(self, call, *arguments, **named):
        try:
            return call(*arguments, **named)
        except ftplib.error_perm as error:
            missing = "no such file or directory" in str(error)
            raise Missing if missing else Refused(str(error)) from None

    def read(self, path, start=None):
        parts = []
        self.ask(self.ftp.retrbinary, "RETR " + path, parts.append, rest=start)
        return b"".join(parts)

    def read_some(self, path, length):
        with self.ask(self.ftp.transfercmd, "RETR " + path) as data:
            some = data.makefile("rb").read(length)
        try:
            self.ftp.voidresp()
        except ftplib.error_temp:
            # The connection was closed before the end of the file.
            pass
        return some

    def write(self, path, content, start=None):
        self.ask(self.ftp.storbinary, "STOR " + path, io.BytesIO(content), rest=start)

    def append(self, path, content):
        self.ask(self.ftp.storbinary, "APPE " + path, io.BytesIO(content))

    def names(self, path):
        entries = self.ask(lambda: list(self.ftp.mlsd(path)))
        return sorted((name, facts["type"]) for name, facts in entries)

    def facts(self, path):
        answer = self.ask(self.ftp.sendcmd, "MLST " + path).split("\n")[1].strip()
        facts = dict(fact.split("=") for fact in answer.split("; ", 1)[0].split(";"))
        size = int(facts["size"]) if facts["type"] == "file" else None
        return facts["type"], size

    def changed(self, path):
        answer = self.ask(self.ftp.sendcmd, "MDTM " + path)
        return calendar.timegm(time.strptime(answer.split()[1], "%Y%m%d%H%M%S"))

    def make(self, path):
        self.ask(self.ftp.mkd, path)

    def remove_folder(self, path):
        self.ask(self.ftp.rmd, path)

    def remove(self, path):
        self.ask(self.ftp.delete, path)

    def rename(self, path, new):
        self.ask(self.ftp.rename, path, new)


class Mount:
    def __init__(self, folder):
        self.folder = folder

    def ask(self, call, path, *arguments):
        try:
            return call(os.path.join(self.folder, path), *arguments)
        except FileNotFoundError:
            raise Missing from None
        except OSError as error:
            raise Refused(str(error)) from None

    def _use(self, path, how, use):
        def whole(path):
            with open(path, how, buffering=0) as file:
                return use(file)

        return self.ask(whole, path)

    def read(self, path, start=None):
        return self._use(path, "rb", lambda file: (file.seek(start or 0), file.read())[1])

    def read_some(self, path, length):
        return self._use(path, "rb", lambda file: file.read(length))

    def write(self, path, content, start=None):
        if start is None:
            return self._use(path, "wb", lambda file: (file.write(content), None)[1])

        def behind(file):
            file.truncate(start)
            file.seek(start)
            file.write(content)

        return self._use(path, "r+b", behind)

    def append(self, path, content):
        self._use(path, "ab", lambda file: (file.write(content), None)[1])

    def names(self, path):
        def kinds(path):
            return [(it.name, "dir" if it.is_dir() else "file") for it in os.scandir(path)]

        return sorted(self.ask(kinds, path))

    def facts(self, path):
        found = self.ask(os.stat, path)
        return ("dir", None) if stat.S_ISDIR(found.st_mode) else ("file", found.st_size)

    def changed(self, path):
        return int(self.ask(os.stat, path).st_mtime)

    def make(self, path):
        self.ask(os.mkdir, path)

    def remove_folder(self, path):
        self.ask(os.rmdir, path)

    def remove(self, path):
        self.ask(os.remove, path)

    def rename(self, path, new):
        self.ask(os.rename, path, os.path.join(self.folder, new))


LARGE = bytes(range(256)) * 2048
OPERATIONS = [
    ("names", ""),
    ("names", "data"),
    ("names", "config"),
    ("names", "var/run/secrets"),
    ("names", "nowhere"),
    ("names", "data/hello"),
    ("facts", "data"),
    ("facts", "data/hello"),
    ("facts", "config/key"),
    ("facts", "data/nothing"),
    ("changed", "data/hello"),
    ("read", "data/hello"),
    ("read", "data/hello", 2),
    ("read", "data/hello", 99),
    ("read", "config/key"),
    ("read", "var/run/secrets/eks.amazonaws.com/token"),
    ("read", "data/nothing"),
    ("read", "data/inner"),
    ("read", "tmp/private"),
    ("write", "data/new", b"first"),
    ("read", "data/new"),
    ("write", "data/new", b"2nd"),
    ("read", "data/new"),
    ("append", "data/new", b" and more"),
    ("read", "data/new"),
    ("write", "data/new", b"ME", 4),
    ("read", "data/new"),
    ("write", "data/new", b"", 3),
    ("read", "data/new"),
    ("write", "data/new", b"", 8),
    ("facts", "data/new"),
    ("write", "data/empty", b""),
    ("facts", "data/empty"),
    ("write", "data/large", LARGE),
    ("read", "data/large"),
    ("read_some", "data/large", 10),
    ("read", "data/large", len(LARGE) - 3),
    ("write", "data/gr\u00fc\u00dfe an \"alle\"", b"name"),
    ("read", "data/gr\u00fc\u00dfe an \"alle\""),
    ("make", "data/folder"),
    ("make", "data/folder"),
    ("make", "data/none/folder"),
    ("write", "data/folder/file", b"x"),
    ("names", "data/folder"),
    ("remove_folder", "data/folder"),
    ("rename", "data/folder/file", "data/folder/file 2"),
    ("rename", "data/folder", "data/moved"),
    ("read", "data/moved/file 2"),
    ("rename", "data/new", "data/moved/file 2"),
    ("read", "data/moved/file 2"),
    ("rename", "data/nothing", "data/something"),
    ("remove", "data/moved/file 2"),
    ("remove", "data/moved/file 2"),
    ("remove", "data/moved"),
    ("remove_folder", "data/moved"),
    ("remove_folder", "data/hello"),
    ("write", "etc/ro/fixed", b"changed"),
    ("append", "etc/ro/fixed", b"changed"),
    ("write", "etc/ro/new", b"new"),
    ("make", "etc/ro/folder"),
    ("remove", "etc/ro/fixed"),
    ("rename", "etc/ro/fixed", "data/fixed"),
    ("read", "etc/ro/fixed"),
    ("names", "data"),
]


def main():
    volumes = {"ftp": Ftp, "mount": Mount}[sys.argv[1]](*sys.argv[2:])
    for name, *arguments in OPERATIONS:
        try:
            result = getattr(volumes, name)(*arguments)
        except Missing:
            result = "missing"
        except Refused as error:
            print(name, arguments[:1], error, file=sys.stderr)
            result = "refused"
        if result == LARGE:
            result = "the large file"
        print(name, *(it for it in arguments if it != LARGE), "->", result)


main()
