// @ts-check
/**
 * As much of the streaming replication protocol, and of pgoutput version 1, as inserts need.
 * Formats: "Streaming Replication Protocol" and "Logical Replication Message Formats" in the
 * Postgres documentation.
 */

const CODE = (/** @type {string} */ letter) => letter.charCodeAt(0);
const XLOG_DATA = CODE('w');
const KEEPALIVE = CODE('k');
const RELATION = CODE('R');
const INSERT = CODE('I');
const TEXT_VALUE = CODE('t');
const STANDBY_STATUS = CODE('r');
const XLOG_DATA_HEADER_BYTES = 25;
/** Clocks of the protocol count microseconds from the year 2000. */
const EPOCH_2000_MS = 946_684_800_000;

class Reader {
  /** @param {Buffer} buffer */
  constructor(buffer, offset = 0) {
    this.buffer = buffer;
    this.offset = offset;
  }

  byte() {
    return this.buffer.readUInt8(this.offset++);
  }

  int16() {
    this.offset += 2;
    return this.buffer.readInt16BE(this.offset - 2);
  }

  int32() {
    this.offset += 4;
    return this.buffer.readInt32BE(this.offset - 4);
  }

  position() {
    this.offset += 8;
    return this.buffer.readBigUInt64BE(this.offset - 8);
  }

  /** Text up to a zero byte. */
  string() {
    const end = this.buffer.indexOf(0, this.offset);
    const text = this.buffer.toString('utf8', this.offset, end);
    this.offset = end + 1;
    return text;
  }

  /** @param {number} length */
  text(length) {
    this.offset += length;
    return this.buffer.toString('utf8', this.offset - length, this.offset);
  }
}

/**
 * @param {Buffer} chunk
 * @param {Map<number, string[]>} relations learnt from the stream; this adds to it
 * @returns {{ position: bigint, wantsReply: boolean, row?: Record<string, string | null> }}
 */
export function readMessage(chunk, relations) {
  const reader = new Reader(chunk);
  const kind = reader.byte();
  if (kind === KEEPALIVE) {
    const position = reader.position();
    reader.position(); // The server's clock.
    return { position, wantsReply: reader.byte() === 1 };
  }
  const position = kind === XLOG_DATA ? reader.position() : 0n;
  const body = new Reader(chunk, XLOG_DATA_HEADER_BYTES);
  const type = kind === XLOG_DATA ? body.byte() : 0;
  if (type === RELATION) readRelation(body, relations);
  const row = type === INSERT ? readInsert(body, relations) : undefined;
  return { position, wantsReply: false, row };
}

/**
 * @param {Reader} reader
 * @param {Map<number, string[]>} relations
 */
function readRelation(reader, relations) {
  const id = reader.int32();
  reader.string(); // Schema.
  reader.string(); // Name.
  reader.byte(); // Replica identity.
  const columns = Array.from({ length: reader.int16() }, () => {
    reader.byte(); // Whether it is part of the key.
    const name = reader.string();
    reader.int32(); // Type.
    reader.int32(); // Type modifier.
    return name;
  });
  relations.set(id, columns);
}

/**
 * @param {Reader} reader
 * @param {Map<number, string[]>} relations
 */
function readInsert(reader, relations) {
  const columns = relations.get(reader.int32()) ?? [];
  reader.byte(); // "N", the new row.
  const values = Array.from({ length: reader.int16() }, () =>
    reader.byte() === TEXT_VALUE ? reader.text(reader.int32()) : null,
  );
  return Object.fromEntries(columns.map((name, index) => [name, values[index]]));
}

/**
 * Tells the server how far we are, or it would end the connection.
 *
 * @param {bigint} position
 */
export function statusUpdate(position) {
  const message = Buffer.alloc(34);
  message.writeUInt8(STANDBY_STATUS, 0);
  for (const offset of [1, 9, 17]) message.writeBigUInt64BE(position, offset);
  message.writeBigUInt64BE(BigInt(Date.now() - EPOCH_2000_MS) * 1000n, 25);
  return message;
}
