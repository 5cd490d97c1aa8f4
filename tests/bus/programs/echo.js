// node echo.js serve | ask PORT COUNT PAUSE_MS: streams of numbers, checked, until a line comes.
"use strict";
const net = require("net");
const [what, port, count, pause] = process.argv.slice(2);
if (what === "serve") {
  const server = net.createServer((socket) => {
    socket.setNoDelay(true);
    socket.on("data", (data) => socket.write(data));
    socket.on("error", () => {});
  });
  server.listen(0, "127.0.0.1", () => console.log(server.address().port));
} else {
  let ending = false, asked = 0, open = Number(count);
  process.stdin.on("data", () => { ending = true; });
  for (let i = 0; i < Number(count); i++) {
    const socket = net.connect(Number(port), "127.0.0.1");
    let number = 0, wanted, got = [];
    const ask = () => {
      if (ending) {
        socket.end();
        if (--open === 0) { console.log(asked); process.exit(0); }
        return;
      }
      number++;
      wanted = Buffer.alloc([8, 64, 700, 5000][number % 4]);
      for (let at = 0; at + 8 <= wanted.length; at += 8) { wanted.writeUInt32BE(number, at); wanted.writeUInt32BE(at + i, at + 4); }
      got = [];
      socket.write(wanted);
    };
    socket.setNoDelay(true);
    socket.on("connect", ask);
    socket.on("data", (data) => {
      got.push(data);
      const all = Buffer.concat(got);
      if (all.length < wanted.length) return;
      if (!all.equals(wanted)) { console.error("wrong bytes"); process.exit(1); }
      asked++;
      setTimeout(ask, Number(pause));
    });
    socket.on("error", (error) => { console.error(String(error)); process.exit(1); });
  }
}
