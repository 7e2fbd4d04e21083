// A complete client app of Docora: verifies every notification, and keeps a copy of every repository on disk.
// Node.js 18 or newer, no packages.
//
//   DOCORA_KEY='the signing key of your app' PORT=9000 COPIES=./copies node receiver.mjs
//
// Below COPIES each repository has a folder of its own: `files` is the copy, `sequences` the highest number that was seen
// of every path, `incoming` what is not complete yet, `epoch` which watch of the repository the copy was made from. All of it
// survives a restart. Files are written synchronously, so that one notification is handled after the other; Docora sends
// several at once, never two of one path.

import crypto from 'node:crypto';
import fs from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const TOLERANCE_SECONDS = 300; // a request that is older may be a recorded one that somebody plays again
const MAX_BODY_BYTES = 8 * 1024 * 1024; // enough: larger files come in chunks
const EVENTS = ['ping', 'create', 'update', 'delete', 'sync_failed', 'sync_completed'];
const DEVICE = /^(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$) *(\..*)?$/is;

/** Answer with this status instead of a 2xx. Docora shows the text to an administrator, and sends it again. */
class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

/**
 * Return whether the request was signed with the key less than five minutes ago. Docora signs every request twice.
 *
 * X-Docora-Signature covers the time and the body, webhook-signature covers webhook-id as well. While the key is being
 * replaced, webhook-signature holds one signature for each key. Header names are in lower case; `bytes` is the body as it came.
 */
export function verify(headers, bytes, key) {
  const now = Date.now() / 1000;
  const timestamps = [headers['x-docora-timestamp'] ?? '', headers['webhook-timestamp'] ?? ''];
  const isFresh = (each) => /^[0-9]{1,12}$/.test(each) && Math.abs(now - Number(each)) <= TOLERANCE_SECONDS;
  if (!timestamps.every(isFresh)) return false;

  const digest = crypto.createHmac('sha256', key).update(`${timestamps[0]}.`).update(bytes).digest('hex');
  if (!same(headers['x-docora-signature'] ?? '', `sha256=${digest}`)) return false;

  const secret = key.startsWith('whsec_') ? Buffer.from(key.slice(6), 'base64') : key;
  const start = `${headers['webhook-id'] ?? ''}.${timestamps[1]}.`;
  const expected = `v1,${crypto.createHmac('sha256', secret).update(start).update(bytes).digest('base64')}`;
  return (headers['webhook-signature'] ?? '').split(' ').some((given) => same(given, expected));
}

/** Compare in constant time: timingSafeEqual does not reveal where the two differ. It throws when the lengths do. */
function same(given, expected) {
  const [left, right] = [Buffer.from(given), Buffer.from(expected)];
  return left.length === right.length && crypto.timingSafeEqual(left, right);
}

/**
 * Return what the signed webhook-id says. X-Docora-Sequence is not signed: anybody may have changed it.
 *
 * A number far in the future would make your app ignore everything that comes later, so it is refused.
 */
export function watchAndSequence(headers) {
  const parts = /^msg_([A-Za-z0-9]{1,64})_([0-9]{1,16})(_[A-Za-z0-9-]+_[0-9]+)?$/.exec(headers['webhook-id'] ?? '');
  if (!parts || Number(parts[2]) > Math.min(Number.MAX_SAFE_INTEGER, (Date.now() + 86_400_000) * 1000)) {
    throw new Refused(422, 'webhook-id holds no watch and sequence, or the sequence is more than a day ahead.');
  }
  return [parts[1], Number(parts[2])];
}

/** Refuse a body that belongs to another address. The address is not signed: anybody may have changed it. */
export function checkEvent(event, { event: named, file }) {
  const isAboutFile = ['create', 'update', 'delete'].includes(event);
  const fits = isAboutFile ? file && (file.content !== undefined) === (event !== 'delete') : named === event;
  if (!fits) throw new Refused(422, `The body is not that of a ${event}.`);
}

/** Does what a verified notification says, and tells what was done. Only then it is answered: a 2xx is a promise. */
function handle(event, notification, headers, copies) {
  if (!EVENTS.includes(event)) throw new Refused(404, 'There is nothing at this address.');
  checkEvent(event, notification);
  if (event === 'ping') return 'pong';
  if (event === 'sync_failed') return notification.error.message;
  const repository = notification.repository.repository_id;
  if (!/^[A-Za-z0-9_-]{1,64}$/.test(repository)) throw new Refused(422, 'repository_id is no name of a folder.');
  const [watch, sequence] = watchAndSequence(headers);
  const copy = new Copy(path.join(copies, repository));
  if (!copy.belongs(watch, sequence)) return 'stale';
  if (event === 'delete') return copy.remove(notification.file.path, sequence);
  if (event !== 'sync_completed') return copy.keep(notification.file, sequence);
  const same = copy.treeSha256() === notification.tree_sha256;
  return same ? 'the copy matches' : 'the copy differs: ask for a re-sync';
}

/** One repository on disk. Files are completed and checked elsewhere before they are moved into `files`. */
class Copy {
  constructor(folder) {
    for (const name of ['files', 'sequences', 'incoming', 'epoch']) this[name] = path.join(folder, name);
    this.makeFolders();
  }

  makeFolders() {
    for (const each of [this.files, this.sequences, this.incoming]) fs.mkdirSync(each, { recursive: true });
  }

  /**
   * Return false for a late or repeated request of an earlier watch. Drop the copy if the repository was watched anew.
   *
   * Docora deletes nothing in a copy of an earlier watch, because it no longer knows what that copy holds. Only a verified
   * request with another watch and a sequence above all others proves that there is a new one. This is on the disk before
   * anything is deleted. If the receiver is killed in between, the next request finds `drop` and finishes it.
   */
  belongs(watch, sequence) {
    const known = fs.existsSync(this.epoch);
    let epoch = known ? JSON.parse(fs.readFileSync(this.epoch, 'utf8')) : { watch: '', highest: 0, drop: false };
    if (watch !== epoch.watch) {
      if (sequence <= epoch.highest) return false;
      epoch = { watch, highest: sequence, drop: epoch.watch !== '' };
      this.writeEpoch(epoch);
    }
    if (epoch.drop) {
      for (const each of [this.files, this.sequences, this.incoming]) fs.rmSync(each, { recursive: true });
      this.makeFolders();
      this.writeEpoch({ ...epoch, drop: false });
    } else if (sequence > epoch.highest) {
      this.writeEpoch({ ...epoch, highest: sequence }, false);
    }
    return true;
  }

  /** Store it. With `flush`, it is on the disk when this returns, and would survive a power failure. */
  writeEpoch(epoch, flush = true) {
    const temporary = `${this.epoch}.new`;
    fs.writeFileSync(temporary, JSON.stringify(epoch));
    if (flush) flushToDisk(temporary, 'r+');
    fs.renameSync(temporary, this.epoch);
    if (flush && process.platform !== 'win32') flushToDisk(path.dirname(this.epoch), 'r'); // it has no such call for folders
  }

  /** `create` and `update`: the content becomes the file, whatever was there before. */
  keep(file, sequence) {
    const target = this.target(file.path);
    if (this.isStale(file.path, sequence)) return 'stale';
    const pieces = this.pieces(file);
    if (!pieces) return 'more to come';
    const temporary = path.join(this.incoming, crypto.randomUUID());
    try {
      const digest = crypto.createHash('sha256');
      let size = 0;
      fs.writeFileSync(temporary, '');
      for (const piece of pieces) {
        fs.appendFileSync(temporary, piece);
        digest.update(piece);
        size += piece.length;
      }
      if (digest.digest('hex') !== file.sha || size !== file.size) {
        throw new Refused(422, 'The content is not what sha and size say.');
      }
      this.remember(file.path, sequence);
      this.makeRoom(target);
      fs.renameSync(temporary, target);
    } finally {
      fs.rmSync(temporary, { force: true });
    }
    this.forgetPieces(file.path);
    return 'kept';
  }

  /** `delete`. That the file is not there is no error: then this is what was wanted. */
  remove(name, sequence) {
    const target = this.target(name);
    if (this.isStale(name, sequence)) return 'stale';
    this.remember(name, sequence);
    this.forgetPieces(name);
    if (!found(target)?.isFile()) return 'absent';
    fs.rmSync(target);
    for (const folder of this.foldersAbove(target)) {
      if (fs.readdirSync(folder).length) break;
      fs.rmdirSync(folder); // git knows no empty folders
    }
    return 'removed';
  }

  /** Where a path belongs. Docora sends none that leads elsewhere; whoever writes files looks all the same. */
  target(name) {
    if (!isSafe(name)) throw new Refused(422, 'The path leads out of the copy, or is no name for a file on this system.');
    return path.join(this.files, ...name.split('/'));
  }

  /** A file where a folder is needed gives way, and the other way round: what is sent now is what holds. */
  makeRoom(target) {
    for (const folder of this.foldersAbove(target)) if (found(folder)?.isFile()) fs.rmSync(folder);
    if (found(target)?.isDirectory()) fs.rmSync(target, { recursive: true });
    fs.mkdirSync(path.dirname(target), { recursive: true });
  }

  /** The folders between a file and the top of the copy, the innermost first. */
  *foldersAbove(target) {
    for (let folder = path.dirname(target); folder !== this.files; folder = path.dirname(folder)) yield folder;
  }

  /** Whether a later notification of this path was here already. Lower, not equal: a repeated one has its number. */
  isStale(name, sequence) {
    const seen = path.join(this.sequences, nameOf(name));
    return fs.existsSync(seen) && sequence < Number(fs.readFileSync(seen, 'utf8'));
  }

  /** Also of a deleted file: a late `create` must not bring it back. */
  remember(name, sequence) {
    const temporary = path.join(this.incoming, crypto.randomUUID());
    fs.writeFileSync(temporary, String(sequence));
    fs.renameSync(temporary, path.join(this.sequences, nameOf(name)));
  }

  /** The content as buffers, or null while chunks of it are still to come. */
  pieces(file) {
    if (!file.chunk) return [Buffer.from(file.content, file.content_encoding ?? 'utf8')];
    const { id, index, total } = file.chunk;
    if (!/^[A-Za-z0-9-]{1,64}$/.test(id)) throw new Refused(422, 'chunk.id is no name of a folder.');
    if (index === 0) this.forgetPieces(file.path); // an attempt before this one will never be completed
    const ofAttempt = path.join(this.incoming, nameOf(file.path), id);
    fs.mkdirSync(ofAttempt, { recursive: true });
    fs.writeFileSync(path.join(ofAttempt, String(Number(index))), file.content);
    if (index < total - 1) return null;
    const all = Array.from({ length: total }, (_, each) => path.join(ofAttempt, String(each)));
    if (!all.every((piece) => found(piece))) throw new Refused(409, 'Chunks before this one are missing.');
    return decoded(all);
  }

  forgetPieces(name) {
    fs.rmSync(path.join(this.incoming, nameOf(name)), { recursive: true, force: true });
  }

  /** One hash for the whole copy: over `{sha}  {path}` of every file, a line each, in the order of the paths' bytes. */
  treeSha256() {
    const paths = [...filesBelow(this.files)].map((file) => path.relative(this.files, file).split(path.sep).join('/'));
    const digest = crypto.createHash('sha256');
    for (const name of paths.sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)))) {
      const sha = crypto.createHash('sha256').update(fs.readFileSync(path.join(this.files, name))).digest('hex');
      digest.update(`${sha}  ${name}\n`);
    }
    return digest.digest('hex');
  }
}

/**
 * Return whether a file at this path is inside the copy, and a file.
 *
 * On Windows, a colon leads to another drive or into a stream, `\` is a `/`, `aux.c` is a device, and a dot or space at the
 * end is dropped. Elsewhere these are ordinary names, so Docora sends them.
 */
export function isSafe(name, windows = process.platform === 'win32') {
  return name.split('/').every((part) => {
    if (['', '.', '..'].includes(part) || part.includes('\0')) return false;
    return !windows || !(/[\x01-\x1f\\:*?"<>|]|[. ]$/.test(part) || DEVICE.test(part));
  });
}

function flushToDisk(name, mode) {
  const descriptor = fs.openSync(name, mode);
  fs.fsyncSync(descriptor);
  fs.closeSync(descriptor);
}

/** A name for what is kept about a path: of any length, with any characters. */
function nameOf(name) {
  return crypto.createHash('sha256').update(name).digest('hex');
}

/** What is there, or null. */
function found(name) {
  return fs.existsSync(name) ? fs.statSync(name) : null;
}

function* filesBelow(folder) {
  for (const entry of fs.readdirSync(folder, { withFileTypes: true })) {
    const name = path.join(folder, entry.name);
    if (entry.isDirectory()) yield* filesBelow(name);
    else yield name;
  }
}

/** The bytes behind joined base64, a piece at a time. A piece may end anywhere; four characters are decoded together. */
function* decoded(pieces) {
  let rest = '';
  for (const piece of pieces) {
    const text = rest + fs.readFileSync(piece, 'utf8');
    const whole = text.length - (text.length % 4);
    yield Buffer.from(text.slice(0, whole), 'base64');
    rest = text.slice(whole);
  }
}

/** Returns the status and the words to answer with. */
function answerTo(event, headers, bytes, copies) {
  try {
    const notification = JSON.parse(bytes.toString('utf8')); // it is Docora's, and so it is JSON
    return [200, handle(event, notification, headers, copies)];
  } catch (error) {
    if (error instanceof Refused) return [error.status, error.message];
    return error.syscall ? [500, `The disk says: ${error.code}`] : [422, `The notification cannot be read: ${error.message}`];
  }
}

function start(key, port, copies) {
  const server = http.createServer(async (request, response) => {
    const answer = (status, words) => {
      console.log(request.url, status, words);
      response.writeHead(status, { 'Content-Type': 'text/plain; charset=utf-8' }).end(words);
    };
    const pieces = [];
    let size = 0;
    for await (const piece of request) {
      size += piece.length;
      if (size > MAX_BODY_BYTES) return answer(413, 'The body is too large.');
      pieces.push(piece);
    }
    const bytes = Buffer.concat(pieces);
    if (!verify(request.headers, bytes, key)) return answer(401, 'The signature is wrong, or the request is old.');
    return answer(...answerTo(request.url.split('/').pop(), request.headers, bytes, copies));
  });
  server.listen(port, '127.0.0.1', () => console.log(`http://127.0.0.1:${server.address().port}`));
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  start(process.env.DOCORA_KEY, Number(process.env.PORT ?? 9000), process.env.COPIES ?? './copies');
}
