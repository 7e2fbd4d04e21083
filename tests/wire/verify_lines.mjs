// Read lines {headers, body, key} with the body in base64 from standard input. Answer each one with a line that has the
// results of both documented verifications, and the body as JSON.stringify writes it. Answer {names, windows} with a line
// that says which of them the receiver takes.

import crypto from 'node:crypto';
import readline from 'node:readline';
import { isSafe } from '../../static/docs/samples/receiver.mjs';
import { verify } from '../../static/docs/samples/verify.mjs';

function contentDigest(file) {
  if (file?.content === undefined || file.chunk) return null;
  const content = Buffer.from(file.content, file.content_encoding ?? 'utf8');
  return { sha: crypto.createHash('sha256').update(content).digest('hex'), size: content.length };
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  const { headers, body, key, names, windows } = JSON.parse(line);
  if (names) {
    process.stdout.write(`${JSON.stringify(names.map((name) => isSafe(name, windows)))}\n`);
    continue;
  }
  const bytes = Buffer.from(body, 'base64');
  let parsed;
  try {
    parsed = JSON.parse(bytes.toString('utf8'));
  } catch {
    parsed = undefined; // a body that was tampered with
  }
  const answer = {
    stringified: Buffer.from(JSON.stringify(parsed) ?? '').toString('base64'),
    by_parsed_body: parsed !== undefined && verify(headers, parsed, key),
    by_raw_body: verify(headers, bytes, key),
    file: contentDigest(parsed?.file),
  };
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
