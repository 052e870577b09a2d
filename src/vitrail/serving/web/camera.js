// A photo from the camera, taken in a dialog; where a browser has none, the file chooser offers it.
const $ = (id) => document.getElementById(id);

export async function openCamera(add, failed) {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1280 } } });
  } catch (error) {
    return failed(error);
  }
  const lens = $("lens"), video = $("video");
  video.srcObject = stream;
  lens.onclose = () => {
    stream.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
  };
  $("close").onclick = () => lens.close();
  $("shoot").onclick = async () => {
    const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
    canvas.getContext("2d").drawImage(video, 0, 0);
    const blob = await canvas.convertToBlob({ type: "image/jpeg", quality: 0.95 });
    add([new File([blob], `${new Date().toLocaleTimeString()}.jpg`, { type: "image/jpeg" })]);
    lens.close();
  };
  lens.showModal();
  await video.play();
}
