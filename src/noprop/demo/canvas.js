const canvas = element.querySelector("canvas");
const pen = canvas.getContext("2d");
const colour = element.querySelector("input[type=color]");
const chooser = element.querySelector("input[type=file]");
let last = null;
let turn = 0; // of the newest drawing, file or clearing: a file that is read later is forgotten

function clear() {
  pen.fillStyle = "black";
  pen.fillRect(0, 0, canvas.width, canvas.height);
}

// The question is the value of the component, not data of the event: see Page._ask.
function ask(image) {
  props.value = image;
  trigger("input");
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return [
    ((event.clientX - box.left) * canvas.width) / box.width,
    ((event.clientY - box.top) * canvas.height) / box.height,
  ];
}

function draw(event) {
  const [x, y] = place(event);
  pen.strokeStyle = colour ? colour.value : "white";
  pen.lineWidth = 22;
  pen.lineCap = pen.lineJoin = "round";
  pen.beginPath();
  pen.moveTo(...(last || [x, y]));
  pen.lineTo(x, y);
  pen.stroke();
  last = [x, y];
}

function stop() {
  if (last === null) return;
  last = null;
  ask(canvas.toDataURL("image/png"));
}

// The file itself is sent, not the canvas: the model resizes it as noprop predict does.
function show(file) {
  if (!file || !file.type.startsWith("image/")) return;
  if (file.size > __MAX_IMAGE__) {
    turn += 1;
    ask("too large");
    return;
  }
  const reader = new FileReader();
  const mine = ++turn;
  reader.onload = () => {
    if (mine !== turn) return;
    const image = new Image();
    image.onload = () => {
      if (mine !== turn) return;
      const scale = Math.min(canvas.width / image.width, canvas.height / image.height);
      const [w, h] = [image.width * scale, image.height * scale];
      clear();
      pen.drawImage(image, (canvas.width - w) / 2, (canvas.height - h) / 2, w, h);
    };
    image.src = reader.result;
    ask(reader.result);
  };
  reader.readAsDataURL(file);
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  turn += 1;
  last = null;
  draw(event);
});
canvas.addEventListener("pointermove", (event) => {
  if (last !== null) draw(event);
});
canvas.addEventListener("pointerup", stop);
canvas.addEventListener("pointercancel", stop);
element.addEventListener("dragover", (event) => event.preventDefault());
element.addEventListener("drop", (event) => {
  event.preventDefault();
  show(event.dataTransfer.files[0]);
});
element.addEventListener("paste", (event) => show(event.clipboardData.files[0]));
chooser.addEventListener("change", () => {
  show(chooser.files[0]);
  chooser.value = "";
});
element.querySelector("button").addEventListener("click", () => {
  turn += 1;
  clear();
  ask("");
});
clear();
