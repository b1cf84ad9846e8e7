// The Node.js SDK for agents that run under akbox: the framed channel (AKBOX_CHANNEL), no dependencies, Node.js 18 or later.
//
//   const { AuthorityKernel } = require('authority-nanos');
//   const ak = new AuthorityKernel();
//   const handle = await ak.alloc('counter', { value: 0 });
'use strict';

const net = require('node:net');

const MAGIC = 0x414b, VERSION = 1, REQUEST = 1, ERROR = 4, HEADER_BYTES = 20, MAX_REQUEST = 1 << 20, MAX_REPLY = 16 << 20;

const CRC_TABLE = new Uint32Array(256).map((_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? (n >>> 1) ^ 0x82f63b78 : n >>> 1;
  return n >>> 0;
});

// CRC-32C (RFC 3720, appendix B.4) of several buffers, one after the other.
function crc32c(...buffers) {
  let crc = 0xffffffff;
  for (const buffer of buffers) for (const byte of buffer) crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

function pack(sequence, payload, flags = REQUEST) {
  const header = Buffer.alloc(HEADER_BYTES);
  header.writeUInt16LE(MAGIC, 0);
  header.writeUInt8(VERSION, 2);
  header.writeUInt8(flags, 3);
  header.writeUInt32LE(payload.length, 4);
  header.writeBigUInt64LE(BigInt(sequence), 8);
  header.writeUInt32LE(crc32c(header.subarray(0, 16), payload), 16);
  return Buffer.concat([header, payload]);
}

// What the kernel refused or could not do. `code` and `name` are the kernel's; `missingCap` and `suggestedFix` say what would
// have allowed it; `traceId` finds the entry in the log.
class AuthorityKernelError extends Error {
  constructor(message, fields = {}) {
    super(fields.name ? `${fields.name}: ${message}` : message);
    this.name = fields.kind || 'AuthorityKernelError';
    this.code = fields.code || 0;
    this.errorName = fields.name || '';
    this.missingCap = fields.missing_cap || null;
    this.suggestedFix = fields.suggested_fix || null;
    this.traceId = fields.trace_id || '';
    this.details = fields.details || {};
  }
}

const KINDS = [
  [-4099, -4001, 'InvalidArgumentError'], [-4199, -4100, 'CapabilityError'], [-4299, -4200, 'OperationDeniedError'],
  [-4399, -4300, 'BudgetExceededError'], [-4400, -4400, 'ConflictError'], [-4406, -4406, 'NotSupportedError'],
  [-4407, -4407, 'NotFoundError'], [-4505, -4505, 'NotFoundError'],
];

function errorOf(problem) {
  const kind = KINDS.find(([low, high]) => problem.code >= low && problem.code <= high);
  return new AuthorityKernelError(problem.message, { ...problem, kind: kind && kind[2] });
}

// One connection to the kernel, opened with the first call. Calls may overlap; each gets its own reply.
class Channel {
  constructor(path = process.env.AKBOX_CHANNEL, token = process.env.AKBOX_CHANNEL_TOKEN) {
    this.path = path;
    this.token = token;
    this.sequence = 0;
    this.waiting = new Map();
    this.buffer = Buffer.alloc(0);
    this.opened = null;
  }

  open() {
    if (!this.path || !this.token) {
      return Promise.reject(new AuthorityKernelError(
        'not running under akbox; start the agent with: akbox run -- node your_agent.js', { kind: 'NotUnderAkboxError' }));
    }
    if (this.opened) return this.opened;
    this.opened = new Promise((resolve, reject) => {
      this.socket = net.createConnection(this.path);
      this.socket.on('data', (data) => this.received(data));
      this.socket.on('error', (error) => { reject(error); this.fail(error); });
      this.socket.on('close', () => this.fail(new AuthorityKernelError('the channel was closed')));
      this.socket.on('connect', () => this.send({ op: 'HELLO', token: this.token }).then(resolve, reject));
    });
    return this.opened;
  }

  send(request) {
    const payload = Buffer.from(JSON.stringify(request));
    if (payload.length > MAX_REQUEST) {
      return Promise.reject(new AuthorityKernelError(`a request has at most ${MAX_REQUEST} bytes`));
    }
    const sequence = ++this.sequence;
    return new Promise((resolve, reject) => {
      this.waiting.set(sequence, { resolve, reject });
      this.socket.ref();
      this.socket.write(pack(sequence, payload));
    });
  }

  async call(op, args = {}, cap = undefined) {
    await this.open();
    return this.send(cap === undefined ? { op, args } : { op, args, cap });
  }

  received(data) {
    this.buffer = Buffer.concat([this.buffer, data]);
    while (this.buffer.length >= HEADER_BYTES) {
      const length = this.buffer.readUInt32LE(4);
      if (this.buffer.readUInt16LE(0) !== MAGIC || this.buffer.readUInt8(2) !== VERSION || length > MAX_REPLY) {
        this.socket.destroy(new AuthorityKernelError('the kernel sent what is no frame'));
        return;
      }
      if (this.buffer.length < HEADER_BYTES + length) return;
      const payload = this.buffer.subarray(HEADER_BYTES, HEADER_BYTES + length);
      if (crc32c(this.buffer.subarray(0, 16), payload) !== this.buffer.readUInt32LE(16)) {
        this.socket.destroy(new AuthorityKernelError('a frame came damaged'));
        return;
      }
      this.settle(Number(this.buffer.readBigUInt64LE(8)), this.buffer.readUInt8(3), payload);
      this.buffer = this.buffer.subarray(HEADER_BYTES + length);
    }
  }

  settle(sequence, flags, payload) {
    const call = this.waiting.get(sequence);
    if (!call) return;
    this.waiting.delete(sequence);
    if (this.waiting.size === 0) this.socket.unref(); // nothing is owed to us: the program may end
    const reply = JSON.parse(payload.toString('utf8'));
    if (flags & ERROR || !reply.ok) call.reject(errorOf(reply.error));
    else call.resolve(reply.result);
  }

  fail(error) {
    for (const call of this.waiting.values()) call.reject(error);
    this.waiting.clear();
    this.opened = null;
  }

  close() {
    if (this.socket) this.socket.end();
  }
}

// The kernel of this run, seen from inside: one method per authority call, each a promise of the reply's result.
class AuthorityKernel {
  constructor(channel = new Channel()) {
    this.channel = channel;
  }

  syscall(op, args = {}, cap = undefined) { return this.channel.call(op, args, cap); }
  close() { this.channel.close(); }

  alloc(type, value) { return this.syscall('ALLOC', { type, value }); }
  async read(ptr, cap) { return (await this.readObject(ptr, cap)).value; }
  readObject(ptr, cap) { return this.syscall('READ', { ptr: ptrOf(ptr) }, cap); }
  async write(ptr, patch, expectedVersion = 0, cap = undefined) {
    return (await this.syscall('WRITE', { ptr: ptrOf(ptr), patch, expected_version: expectedVersion }, cap)).version;
  }
  delete(ptr, expectedVersion = 0) {
    return this.syscall('DELETE', { ptr: ptrOf(ptr), expected_version: expectedVersion });
  }
  async batch(operations) { return (await this.syscall('BATCH', { operations })).results; }
  query(what = 'objects', args = {}) { return this.syscall('QUERY', { ...args, what }); }
  commit() { return this.syscall('COMMIT'); }
  callTool(tool, params = {}) { return this.syscall('CALL', { tool, params }); }
  spawn(program, argv = undefined, more = {}) { return this.syscall('SPAWN', { ...more, program, argv: argv || [program] }); }
  send(to, payload, more = {}) { return this.syscall('SEND', { ...more, to, payload }); }
  async recv(limit = 10, timeoutMs = 0) {
    return (await this.syscall('RECV', { limit, timeout_ms: timeoutMs })).messages;
  }
  respond(content) { return this.syscall('RESPOND', { content }); }
  assert(name, value, message = undefined, halt = false) {
    return this.syscall('ASSERT', message === undefined ? { name, value, halt } : { name, value, message, halt });
  }
  inference(model, prompt, more = {}) {
    return this.syscall('INFERENCE', { ...more, model, ...(typeof prompt === 'string' ? { prompt } : { messages: prompt }) });
  }
  async authorize(op, target) { return (await this.query('authorize', { op, target })).authorized; }
  authorizeDetails(op, target) { return this.query('authorize', { op, target }); }
  async budgetStatus(resource = undefined) {
    return resource === undefined ? (await this.syscall('BUDGET_STATUS')).budgets : this.syscall('BUDGET_STATUS', { resource });
  }
  async auditQuery(filters = {}) { return (await this.query('audit', filters)).entries; }
  async lastDenial() {
    try {
      return await this.syscall('LAST_ERROR');
    } catch (error) {
      if (error.errorName === 'NOT_FOUND') return null;
      throw error;
    }
  }
  derive(cap, narrower = {}) { return this.syscall('CAP', { ...narrower, op: 'derive', cap }); }
  revoke(cap, reason = '') { return this.syscall('CAP', { op: 'revoke', cap, reason }); }
}

function ptrOf(handle) {
  return typeof handle === 'object' && handle !== null ? handle.ptr : handle;
}

module.exports = { AuthorityKernel, AuthorityKernelError, Channel, crc32c, pack };
