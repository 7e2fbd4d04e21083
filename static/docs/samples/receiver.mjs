// A complete client app for Docora: verify every notification and keep a copy of every repository on disk.
// Needs only Node.js 18 or newer.
//
//   DOCORA_KEY='your signing key' PORT=9000 COPIES=./copies node receiver.mjs
//
// Each repository has its own folder in COPIES. Everything in it survives a restart:
//
// - `files`: the copy
// - `sequences`: the highest sequence received for each path
// - `incoming`: files that are not complete yet
// - `epoch`: the watch the copy was made from
//
// Run only one process per COPIES folder. Files are written synchronously, so notifications are processed one at a time.
// Docora sends several files at once, but never two notifications for one path.

import crypto from 'node:crypto';
import fs from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { inspect } from 'node:util';

const TOLERANCE_SECONDS = 300; // reject older requests, which may be replays
const MAX_BODY_BYTES = 8 * 1024 * 1024; // larger files arrive in chunks
const UNFINISHED_MILLISECONDS = 86_400_000; // Docora has started over long before
const EVENTS = ['ping', 'create', 'update', 'delete', 'sync_failed', 'sync_completed', 'verify'];
const DEVICE = /^(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$) *(\..*)?$/is;

/** Respond with this status instead of 2xx. Docora sends the notification again and shows `text` with the failure. */
class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

/**
 * Return whether the request was signed with `key` within the last five minutes. Docora signs every request twice.
 *
 * X-Docora-Signature covers the timestamp and the body. webhook-signature also covers webhook-id. During a key rotation,
 * webhook-signature holds one signature per key. Header names are lower-case; `bytes` is the raw body.
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

/** Compare in constant time, which doesn't reveal where the values differ. timingSafeEqual throws if the lengths differ. */
function same(given, expected) {
  const [left, right] = [Buffer.from(given), Buffer.from(expected)];
  return left.length === right.length && crypto.timingSafeEqual(left, right);
}

/**
 * Return the watch and the sequence from the signed webhook-id. X-Docora-Sequence is not signed, so don't use it.
 *
 * Refuse a sequence far in the future: your app would ignore every later notification as out of date.
 */
export function watchAndSequence(headers) {
  const parts = /^msg_([A-Za-z0-9]{1,64})_([0-9]{1,16})(_[A-Za-z0-9-]+_[0-9]+)?$/.exec(headers['webhook-id'] ?? '');
  if (!parts || Number(parts[2]) > Math.min(Number.MAX_SAFE_INTEGER, (Date.now() + 86_400_000) * 1000)) {
    throw new Refused(422, 'webhook-id has no watch and sequence, or the sequence is more than a day ahead.');
  }
  return [parts[1], Number(parts[2])];
}

/** Refuse a body that doesn't fit the event in the URL. The URL is not signed, so a replay may have changed it. */
export function checkEvent(event, { event: named, file }) {
  const isAboutFile = ['create', 'update', 'delete'].includes(event);
  const fits = isAboutFile ? file && (file.content !== undefined) === (event !== 'delete') : named === event;
  if (!fits) throw new Refused(422, `This is not the body of a ${event} event.`);
}

/**
 * Process a verified notification and return what was done. Respond with 2xx only after this: it means "stored".
 *
 * For `verify`, return the object to respond with as JSON.
 */
function handle(event, notification, headers, copies) {
  if (!EVENTS.includes(event)) throw new Refused(404, 'Not found.');
  checkEvent(event, notification);
  if (event === 'ping') return 'pong';
  if (event === 'sync_failed') return notification.error.message;
  const repository = notification.repository.repository_id;
  if (!/^[A-Za-z0-9_-]{1,64}$/.test(repository)) throw new Refused(422, "repository_id can't be used as a folder name.");
  const [watch, sequence] = watchAndSequence(headers);
  const copy = new Copy(path.join(copies, repository));
  const belongs = copy.belongs(watch, sequence);
  if (event === 'verify') {
    if (!belongs || sequence < copy.highest()) throw new Refused(409, 'A later notification has arrived.'); // a replay?
    return copy.page(notification.tree_sha256, notification.after, notification.limit);
  }
  if (!belongs) return 'stale';
  if (event === 'delete') return copy.remove(notification.file.path, sequence);
  if (event !== 'sync_completed') return copy.keep(notification.file, sequence);
  const same = copy.treeSha256() === notification.tree_sha256;
  return same ? 'the copy matches' : 'the copy differs: ask for a re-sync';
}

/** One repository on disk. A file is assembled and checked in `incoming` before it is moved into `files`. */
class Copy {
  constructor(folder) {
    for (const name of ['files', 'sequences', 'incoming', 'epoch']) this[name] = path.join(folder, name);
    this.makeFolders();
  }

  makeFolders() {
    for (const each of [this.files, this.sequences, this.incoming]) fs.mkdirSync(each, { recursive: true });
  }

  /**
   * Return whether the notification belongs to the current watch. Drop the copy if a new watch has begun.
   *
   * After your app stops watching a repository, Docora no longer knows what the copy holds and sends no deletes for it. So
   * a copy from an earlier watch must go. Only a verified notification with another watch and a sequence above all others
   * proves that a new watch has begun. Late and replayed notifications of an earlier watch have lower sequences.
   *
   * `drop` is stored before anything is deleted. If the receiver is killed in between, the next notification finds `drop`
   * and finishes the deletion.
   */
  belongs(watch, sequence) {
    let epoch = this.readEpoch();
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

  /** Return the highest sequence received for the repository. */
  highest() {
    return this.readEpoch().highest;
  }

  /** Return the stored epoch. After a power failure the file may be empty, which is the same as none. */
  readEpoch() {
    try {
      return JSON.parse(fs.readFileSync(this.epoch, 'utf8'));
    } catch {
      return { watch: '', highest: 0, drop: false };
    }
  }

  /** Store the epoch. With `flush`, it is on disk when this returns and survives a power failure. */
  writeEpoch(epoch, flush = true) {
    const temporary = `${this.epoch}.new`;
    fs.writeFileSync(temporary, JSON.stringify(epoch));
    if (flush) flushToDisk(temporary, 'r+');
    fs.renameSync(temporary, this.epoch);
    if (flush && process.platform !== 'win32') flushToDisk(path.dirname(this.epoch), 'r'); // Windows can't flush folders
  }

  /** Process a `create` or `update`: write the file, whatever was there before. */
  keep(file, sequence) {
    const target = this.target(file.path);
    if (this.isStale(file.path, sequence)) return 'stale';
    const pieces = this.pieces(file);
    if (!pieces) return 'waiting for more chunks';
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
        throw new Refused(422, "The content doesn't match sha and size.");
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

  /** Process a `delete`. A file that doesn't exist is not an error. */
  remove(name, sequence) {
    const target = this.target(name);
    if (this.isStale(name, sequence)) return 'stale';
    this.remember(name, sequence);
    this.forgetPieces(name);
    if (!found(target)?.isFile()) return 'absent';
    fs.rmSync(target);
    for (const folder of this.foldersAbove(target)) {
      if (fs.readdirSync(folder).length) break;
      fs.rmdirSync(folder); // git has no empty folders
    }
    return 'removed';
  }

  /** Return where to write a path. Docora sends no path that leads outside the copy; check anyway. */
  target(name) {
    if (!isSafe(name)) throw new Refused(422, "The path leads outside the copy or isn't a valid file name on this system.");
    return path.join(this.files, ...name.split('/'));
  }

  /** Remove a file where a folder is needed, or a folder where the file goes. The newest notification wins. */
  makeRoom(target) {
    for (const folder of this.foldersAbove(target)) if (found(folder)?.isFile()) fs.rmSync(folder);
    if (found(target)?.isDirectory()) fs.rmSync(target, { recursive: true });
    fs.mkdirSync(path.dirname(target), { recursive: true });
  }

  /** Yield the folders between a file and the root of the copy, innermost first. */
  *foldersAbove(target) {
    for (let folder = path.dirname(target); folder !== this.files; folder = path.dirname(folder)) yield folder;
  }

  /** Return whether a later notification for this path has been processed. A retry has the same sequence. */
  isStale(name, sequence) {
    const seen = path.join(this.sequences, nameOf(name));
    return fs.existsSync(seen) && sequence < Number(fs.readFileSync(seen, 'utf8'));
  }

  /** Store the path's sequence. Keep it for deleted files too, so that a late `create` doesn't bring them back. */
  remember(name, sequence) {
    const temporary = path.join(this.incoming, crypto.randomUUID());
    fs.writeFileSync(temporary, String(sequence));
    fs.renameSync(temporary, path.join(this.sequences, nameOf(name)));
  }

  /** Return the content as buffers, or null while chunks are missing. */
  pieces(file) {
    if (!file.chunk) return [Buffer.from(file.content, file.content_encoding ?? 'utf8')];
    const { id, index, total } = file.chunk;
    if (!/^[A-Za-z0-9-]{1,64}$/.test(id)) throw new Refused(422, "chunk.id can't be used as a folder name.");
    if (index === 0) this.forgetPieces(file.path); // an earlier attempt will never be completed
    const ofAttempt = path.join(this.incoming, nameOf(file.path), id);
    fs.mkdirSync(ofAttempt, { recursive: true });
    fs.writeFileSync(path.join(ofAttempt, String(Number(index))), file.content);
    if (index < total - 1) return null;
    const all = Array.from({ length: total }, (_, each) => path.join(ofAttempt, String(each)));
    if (!all.every((piece) => found(piece))) throw new Refused(409, 'Earlier chunks are missing.');
    return decoded(all);
  }

  forgetPieces(name) {
    fs.rmSync(path.join(this.incoming, nameOf(name)), { recursive: true, force: true });
  }

  /** Return the paths of all files, sorted by their bytes. JavaScript's own order differs: it compares UTF-16. */
  paths() {
    const found = [...filesBelow(this.files)].map((file) => path.relative(this.files, file).split(path.sep).join('/'));
    return found.sort(byBytes);
  }

  sha(name) {
    return crypto.createHash('sha256').update(fs.readFileSync(path.join(this.files, name))).digest('hex');
  }

  /** Return one hash for the whole copy: SHA-256 over the lines `{sha}  {path}`, sorted by the bytes of the paths. */
  treeSha256() {
    const digest = crypto.createHash('sha256');
    for (const name of this.paths()) digest.update(`${this.sha(name)}  ${name}\n`);
    return digest.digest('hex');
  }

  /**
   * Process a `verify`: return the hash if the whole copy matches it, otherwise the files after `after`.
   *
   * This reads the files from disk, so it notices what was changed or lost there. If your app has too many files to read
   * within 30 seconds, store each `sha` with its path.
   */
  page(treeSha256, after, limit) {
    if (!after && this.treeSha256() === treeSha256) return { tree_sha256: treeSha256 };
    const later = this.paths().filter((name) => byBytes(name, after) > 0);
    const files = later.slice(0, limit).map((name) => ({ path: name, sha: this.sha(name) }));
    return { files, next: later.length > limit ? later[limit - 1] : null };
  }
}

/**
 * Return whether the path leads to a file inside the copy.
 *
 * On Windows, a colon leads to another drive or a stream, `\` is a separator, `aux.c` is a device, and a trailing dot or
 * space is dropped. Elsewhere these are ordinary names, so Docora sends them.
 */
export function isSafe(name, windows = process.platform === 'win32') {
  return name.split('/').every((part) => {
    if (['', '.', '..'].includes(part) || part.includes('\0')) return false;
    return !windows || !(/[\x01-\x1f\\:*?"<>|]|[. ]$/.test(part) || DEVICE.test(part));
  });
}

function byBytes(left, right) {
  return Buffer.compare(Buffer.from(left), Buffer.from(right));
}

function flushToDisk(name, mode) {
  const descriptor = fs.openSync(name, mode);
  fs.fsyncSync(descriptor);
  fs.closeSync(descriptor);
}

/** Return a file name for data about a path, which can have any length and any characters. */
function nameOf(name) {
  return crypto.createHash('sha256').update(name).digest('hex');
}

/** Return the file's or folder's metadata, or null if it doesn't exist. */
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

/** Decode the joined base64 piece by piece, four characters at a time. A piece can end anywhere. */
function* decoded(pieces) {
  let rest = '';
  for (const piece of pieces) {
    const text = rest + fs.readFileSync(piece, 'utf8');
    const whole = text.length - (text.length % 4);
    yield Buffer.from(text.slice(0, whole), 'base64');
    rest = text.slice(whole);
  }
}

/**
 * Delete what an earlier process left in `incoming`: temporary files, and uploads without a new chunk for a day.
 *
 * More recent uploads stay, because Docora may send their next chunk.
 */
function clearUnfinished(copies) {
  for (const repository of found(copies) ? fs.readdirSync(copies) : []) {
    const incoming = path.join(copies, repository, 'incoming');
    for (const name of found(incoming) ? fs.readdirSync(incoming) : []) {
      const left = path.join(incoming, name);
      const attempts = found(left).isFile() ? [] : fs.readdirSync(left).map((attempt) => path.join(left, attempt));
      const newest = Math.max(...[left, ...attempts].map((each) => found(each).mtimeMs));
      if (found(left).isFile() || newest < Date.now() - UNFINISHED_MILLISECONDS) fs.rmSync(left, { recursive: true });
    }
  }
}

/** Return the status and the text to respond with, and the notification's file, if it has one. */
function answerTo(event, headers, body, copies) {
  let file;
  try {
    const notification = JSON.parse(body.toString('utf8'));
    file = notification.file;
    return [200, handle(event, notification, headers, copies), file];
  } catch (error) {
    if (error instanceof Refused) return [error.status, error.message, file];
    if (error.syscall) return [500, `The file can't be stored: ${error.code}`, file];
    return [422, `The notification is malformed: ${error.message}`, file];
  }
}

function start(key, port, copies) {
  clearUnfinished(copies);
  const server = http.createServer(async (request, response) => {
    const event = request.url.split('/').pop();
    const answer = (status, result, file) => {
      const isText = typeof result === 'string';
      const subject = file?.path ? `${event} ${inspect(file.path)}` : event;
      console.log(`${subject}: ${status} ${isText ? result : `${result.files?.length ?? 0} files listed`}`);
      const type = isText ? 'text/plain; charset=utf-8' : 'application/json';
      response.writeHead(status, { 'Content-Type': type }).end(isText ? result : JSON.stringify(result));
    };
    const pieces = [];
    let size = 0;
    try {
      for await (const piece of request) {
        size += piece.length;
        if (size > MAX_BODY_BYTES) return answer(413, 'The body is too large.');
        pieces.push(piece);
      }
    } catch {
      return; // the client has gone
    }
    const bytes = Buffer.concat(pieces);
    if (!verify(request.headers, bytes, key)) return answer(401, 'The signature is wrong, or the request is too old.');
    return answer(...answerTo(event, request.headers, bytes, copies));
  });
  server.listen(port, '127.0.0.1', () => console.log(`http://127.0.0.1:${server.address().port}`));
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  if (!process.env.DOCORA_KEY) {
    console.error('Set DOCORA_KEY to the signing key of your app.');
    process.exit(1);
  }
  start(process.env.DOCORA_KEY, Number(process.env.PORT ?? 9000), process.env.COPIES ?? './copies');
}
