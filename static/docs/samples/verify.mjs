// Receive Docora's notifications and verify their signatures. Needs only Node.js 18 or newer.
//
//   DOCORA_KEY='your signing key' PORT=9000 node verify.mjs
//
// Verify the raw bytes of the body before you parse them. In Express, `express.raw({type: 'application/json', limit: '8mb'})`
// puts them into `request.body`. If your framework has already parsed the body, as `express.json({limit: '8mb'})` does, pass
// the parsed body to verify().

import crypto from 'node:crypto';
import http from 'node:http';
import { pathToFileURL } from 'node:url';

const TOLERANCE_SECONDS = 300; // reject older requests, which may be replays
const MAX_BODY_BYTES = 8 * 1024 * 1024; // larger files arrive in chunks

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
 * webhook-signature holds one signature per key. Header names are lower-case. `body` is a Buffer with the raw bytes, or the
 * parsed JSON: Docora writes every body exactly as JSON.stringify() does.
 */
export function verify(headers, body, key) {
  const text = Buffer.isBuffer(body) ? body : JSON.stringify(body);
  const now = Date.now() / 1000;
  const timestamps = [headers['x-docora-timestamp'] ?? '', headers['webhook-timestamp'] ?? ''];
  const isFresh = (each) => /^[0-9]{1,12}$/.test(each) && Math.abs(now - Number(each)) <= TOLERANCE_SECONDS;
  if (!timestamps.every(isFresh)) return false;

  const digest = crypto.createHmac('sha256', key).update(`${timestamps[0]}.`).update(text).digest('hex');
  if (!same(headers['x-docora-signature'] ?? '', `sha256=${digest}`)) return false;

  const secret = key.startsWith('whsec_') ? Buffer.from(key.slice(6), 'base64') : key;
  const start = `${headers['webhook-id'] ?? ''}.${timestamps[1]}.`;
  const expected = `v1,${crypto.createHmac('sha256', secret).update(start).update(text).digest('base64')}`;
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
 * Process a verified notification. `event` is create, update, delete, sync_failed, sync_completed or ping.
 *
 * Docora sends verify only if your app has turned it on: see receiver.mjs for an answer.
 */
function handle(event, notification, headers) {
  if (event === 'verify') throw new Refused(404, 'This app does not answer verify.');
  checkEvent(event, notification);
  const [watch, sequence] = event === 'ping' ? ['', 0] : watchAndSequence(headers); // receiver.mjs uses them
  console.log(event, JSON.stringify(notification.file?.path ?? ''), watch, sequence);
}

function start(key, port) {
  const server = http.createServer(async (request, response) => {
    const answer = (status, text = '') => response.writeHead(status).end(text);
    const pieces = [];
    let size = 0;
    try {
      for await (const piece of request) {
        size += piece.length;
        if (size > MAX_BODY_BYTES) return answer(413);
        pieces.push(piece);
      }
    } catch {
      return; // the client has gone
    }
    const bytes = Buffer.concat(pieces);
    if (!verify(request.headers, bytes, key)) return answer(401); // 2xx would count as delivered
    try {
      handle(request.url.split('/').pop(), JSON.parse(bytes.toString('utf8')), request.headers);
    } catch (error) {
      if (error instanceof Refused) return answer(error.status, error.message);
      console.error(error); // thrown from here, it would end the server
      return answer(500);
    }
    return answer(200);
  });
  server.listen(port, '127.0.0.1', () => console.log(`http://127.0.0.1:${server.address().port}`));
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  if (!process.env.DOCORA_KEY) {
    console.error('Set DOCORA_KEY to the signing key of your app.');
    process.exit(1);
  }
  start(process.env.DOCORA_KEY, Number(process.env.PORT ?? 9000));
}
